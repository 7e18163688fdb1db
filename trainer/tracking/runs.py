"""A training run in MLflow: its parameters, data set, metrics and pictures."""
# MLflow's client has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.run_config import RunConfig, canonical
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.files import is_mapping
from trainer.run.provenance import git_commit
from trainer.run.summary import Evaluated
from trainer.tracking.client import create_once

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Metric

METRICS_PER_BATCH = 500


def create_run(client: "MlflowClient", config: RunConfig, dataset: DatasetInfo, key: str) -> str:
    """Create the MLflow run with this key, tagged with its provenance, unless it exists; returns its id."""
    tags = {
        "mlflow.source.name": "python -m trainer",
        "mlflow.source.git.commit": git_commit(),
        "dualview.method_sha256": config.method_sha256,
        "dualview.config_sha256": config.config_sha256,
        "dualview.dataset_fingerprint": dataset.fingerprint,
    }
    if config.training.init_sha256:
        tags["dualview.init_sha256"] = config.training.init_sha256
    return create_once(client, experiment_id(client, config), str(config.run.name), key, tags)


def describe_run(client: "MlflowClient", run_id: str, config: RunConfig, dataset: DatasetInfo) -> None:
    """Log the run's parameters, configuration and data set; idempotent."""
    from mlflow.entities import DatasetInput, InputTag, Param

    parameters = flatten(config.model_dump(mode="json"))
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])
    client.log_text(run_id, config.canonical_json() + "\n", "config.json")
    client.log_inputs(run_id, [DatasetInput(mlflow_dataset(dataset), [InputTag("mlflow.data.context", "training")])])


def experiment_id(client: "MlflowClient", config: RunConfig) -> str:
    """The experiment's id; with a bare database, artifacts go beside the runs and not under the working directory.

    Raises:
        InputError: the experiment was deleted, and a deleted one keeps its name.
    """
    from mlflow.entities import LifecycleStage

    name, uri = config.run.experiment, str(config.run.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment and experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(
            f"run.experiment = {name!r}: was deleted in MLflow; allowed: to restore it there (mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}) and to run the same command again"
        )
    if experiment:
        return experiment.experiment_id
    served = uri.startswith("http")
    artifacts = Path(config.run.storage or "") / "mlflow-artifacts" / name
    return client.create_experiment(name, artifact_location=None if served else artifacts.as_uri())


def mlflow_dataset(dataset: DatasetInfo) -> "Dataset":
    """The data set as MLflow names it; its digest is the start of the fingerprint (MLflow allows 36 characters)."""
    from mlflow.entities import Dataset

    source = canonical({"source": dataset.source, "fingerprint": dataset.fingerprint})
    profile = canonical({"train": dataset.train, "heldout": dataset.heldout, "image_shape": dataset.image_shape})
    return Dataset(
        name=dataset.source[-500:],
        digest=dataset.fingerprint[:32],
        source_type="dualview",
        source=source,
        profile=profile,
    )


def log_evaluation(
    client: "MlflowClient",
    run_id: str,
    model_id: str | None,
    dataset: DatasetInfo,
    step: int,
    evaluated: Evaluated,
    metrics: Mapping[str, float],
) -> None:
    """Log the final metrics of a run, tied to the LoggedModel and the data set, and its curves.

    Args:
        client: MLflow client of the server.
        run_id: id of the MLflow run.
        model_id: id of the LoggedModel; None where there is none.
        dataset: data set that the model was evaluated on.
        step: training step of the weights.
        evaluated: results with the curves to log; their x axis is the number of network evaluations, not the step.
        metrics: metric name -> value to log.
    """
    entities = evaluation_metrics(metrics, dataset, step, run_id, model_id)
    for name, points in evaluated.frechet_at_nfe.items():
        for point in points:  # the x axis of MLflow's charts is the step
            entities += evaluation_metrics({f"{name}_at_nfe": point.value}, dataset, point.nfe, run_id, model_id)
    for first in range(0, len(entities), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=entities[first : first + METRICS_PER_BATCH])


def evaluation_metrics(
    scores: Mapping[str, float],
    dataset: DatasetInfo,
    step: int,
    run_id: str,
    model_id: str | None = None,
    time_ms: int | None = None,
) -> "list[Metric]":
    """Scores as MLflow's metrics, tied to the data set, the step and, where there is one, the LoggedModel."""
    from mlflow.entities import Metric

    entity, now = mlflow_dataset(dataset), time_ms or time.time_ns() // 10**6
    names = {"dataset_name": entity.name, "dataset_digest": entity.digest, "run_id": run_id, "model_id": model_id}
    return [Metric(name, value, now, step, **names) for name, value in scores.items()]


def log_grid(client: "MlflowClient", run_id: str, picture: Path, step: int, time_ms: int | None = None) -> None:
    """Log a grid of samples as MLflow's image `samples` of a step, which its pages show over training."""
    if picture.is_file():
        from PIL import Image

        with Image.open(picture) as image:
            client.log_image(run_id, image, key="samples", step=step, timestamp=time_ms, synchronous=True)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if is_mapping(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
