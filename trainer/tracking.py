"""MLflow, fed from the journal by a thread of the driver: a slow or dead tracking server never stops a step.

The journal is the spool. `tracking.json` says which MLflow run it goes to and how far it has been uploaded, so a driver
that is killed, or a server that comes back tomorrow, loses and doubles nothing: a record carries its own time stamp,
and MLflow keeps one metric per (name, time, step, value).
"""

import hashlib
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from trainer import state
from trainer.config import RunConfig, canonical
from trainer.data.info import DatasetInfo
from trainer.journal import Journal, Record
from trainer.paths import RunPaths
from trainer.provenance import git_commit
from trainer.scores import FILES, PER_IMAGE
from trainer.settings import InputError

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0
METRICS_PER_BATCH = 500
KEY_TAG = "dualview.key"
BOOKKEEPING = ("kind", "time_ms", "step")


def mlflow_environment() -> None:
    """Defaults that keep MLflow quiet and quick to give up; set before it is imported, the user's own values win."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


class Tracker(threading.Thread):
    """Uploads a run's journal for as long as it grows.

    Attributes:
        run_id: the MLflow run, once the server has answered.
        problem: the last failure in one line, None after a success.
    """

    def __init__(self, config: RunConfig, paths: RunPaths, dataset: DatasetInfo, journal: Journal) -> None:
        """Go on from `tracking.json` where there is one; nothing is contacted before `start()`."""
        super().__init__(name="tracker", daemon=True)
        self._config, self._paths, self._dataset, self._journal = config, paths, dataset, journal
        saved = state.read_json(paths.tracking) if paths.tracking.is_file() else {}
        self.run_id: str | None = saved.get("run_id")
        self._key: str = saved.get("key") or uuid.uuid4().hex
        self._described: bool = saved.get("described", False)
        self._offset: int = saved.get("offset", 0)
        self._step: int = saved.get("step", 0)
        self.problem: str | None = None
        self._client: Any = None
        self._stop_event, self._round = threading.Event(), threading.Condition()
        self._answered = False

    def run(self) -> None:
        """The thread: upload what is new, wait, again; failures are kept as `problem` and retried."""
        while not self._stop_event.is_set():
            try:
                self._connect()
                self._upload()
                self.problem = None
                with self._round:
                    self._answered = True
                    self._round.notify_all()
            except Exception as error:  # noqa: BLE001 - whatever the server or network does, training goes on
                self.problem = one_line(error)
            self._stop_event.wait(RETRY_SECONDS if self.problem else POLL_SECONDS)

    def drain(self, deadline_s: float) -> bool:
        """Wait until all that is in the journal now is uploaded; False if that takes longer than the deadline."""
        target = max((offset for _, offset in self._journal.read()), default=0)
        with self._round:
            return self._round.wait_for(lambda: self._answered and self._offset >= target, deadline_s)

    def finish(self, status: str, deadline_s: float) -> None:
        """Upload what is left, set the MLflow run's status (FINISHED or FAILED) and stop; bounded by the deadline."""
        try:
            if deadline_s and self.drain(deadline_s):
                self._client.set_terminated(self.run_id, status)
        except Exception as error:  # noqa: BLE001 - a server that goes away now takes nothing from the run
            self.problem = one_line(error)
        self._stop_event.set()

    def _connect(self) -> None:
        if self._client is not None:
            return
        mlflow_environment()
        from mlflow import MlflowClient

        client = MlflowClient(self._config.run.tracking_uri)
        if self.run_id is None or not _is_there(client, self.run_id):
            self.run_id, self._described, self._offset, self._step = None, False, 0, 0
            self._save()  # the key, by which a driver that is killed now finds the run again
            self.run_id = create_run(client, self._config, self._dataset, self._key)
            self._save()  # before anything else can fail, so that a retry fills this run and makes no other
        else:
            client.set_terminated(self.run_id, "RUNNING")
        if not self._described:
            describe_run(client, self.run_id, self._config, self._dataset)
            self._described = True
            self._save()
        self._client = client

    def _upload(self) -> None:
        """All complete records behind the offset, in batches; progress is noted once they are there."""
        pending: list[Record] = []
        evaluated: list[Record] = []
        reached, step = self._offset, self._step
        for record, offset in self._journal.read(self._offset):
            if record["kind"] == "metrics" and record["step"] > step:
                pending.append(record)
                step = record["step"]
            elif record["kind"] == "evaluation":
                evaluated.append(record)
            reached = offset
        rows = [(name, record) for record in pending for name in record if name not in BOOKKEEPING]
        for first in range(0, len(rows), METRICS_PER_BATCH):
            self._log(rows[first : first + METRICS_PER_BATCH])
        for record in evaluated:
            self._log_checkpoint(record)
        self._offset, self._step = reached, step
        if pending or evaluated:
            self._save()

    def _log(self, rows: list[tuple[str, Record]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, record[name], record["time_ms"], record["step"]) for name, record in rows]
        self._client.log_batch(self.run_id, metrics=metrics)

    def _log_checkpoint(self, record: Record) -> None:
        """The scores of a checkpoint that was evaluated beside training, at its step, and its grid of samples."""
        scores = {name: value for name, value in record.items() if isinstance(value, float)}
        metrics = evaluation_metrics(scores, self._dataset, record["step"], str(self.run_id), time_ms=record["time_ms"])
        self._client.log_batch(self.run_id, metrics=metrics)
        log_grid(self._client, str(self.run_id), Path(record.get("samples_png", "")), record["step"], record["time_ms"])

    def _save(self) -> None:
        progress = {"described": self._described, "offset": self._offset, "step": self._step}
        state.write_json(self._paths.tracking, {"key": self._key, "run_id": self.run_id, **progress})


def _is_there(client: Any, run_id: str) -> bool:  # noqa: ANN401 - MlflowClient
    """Whether this server, wherever it listens today, holds the run."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def one_line(error: BaseException) -> str:
    """An error's text on one line, short enough to print."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def create_run(client: Any, config: RunConfig, dataset: DatasetInfo, key: str) -> str:  # noqa: ANN401 - MlflowClient
    """A new MLflow run, tagged with what it comes from, or the one that was made with this key; returns its id."""
    tags = {
        "mlflow.source.name": "python -m trainer",
        "mlflow.source.git.commit": git_commit(),
        "dualview.method_sha256": config.method_sha256,
        "dualview.config_sha256": config.config_sha256,
        "dualview.dataset_fingerprint": dataset.fingerprint,
    }
    return _made_once(client, _experiment(client, config), str(config.run.name), key, tags)


def _made_once(client: Any, experiment: str, name: str, key: str, tags: dict[str, str]) -> str:  # noqa: ANN401
    """The id of the run with this key, made if there is none: killed after making it, one finds it again."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    return client.create_run(experiment, run_name=name, tags={**tags, KEY_TAG: key}).info.run_id


def describe_run(client: Any, run_id: str, config: RunConfig, dataset: DatasetInfo) -> None:  # noqa: ANN401
    """The run's parameters, configuration and data set; doing it twice changes nothing."""
    from mlflow.entities import DatasetInput, InputTag, Param

    parameters = flatten(config.model_dump(mode="json"))
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])
    client.log_text(run_id, config.canonical_json() + "\n", "config.json")
    client.log_inputs(run_id, [DatasetInput(mlflow_dataset(dataset), [InputTag("mlflow.data.context", "training")])])


def _experiment(client: Any, config: RunConfig) -> str:  # noqa: ANN401 - MlflowClient
    """The experiment's id; with a bare database, artifacts go beside the runs and not under the working directory."""
    name, uri = config.run.experiment, str(config.run.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment:
        return experiment.experiment_id
    served = uri.startswith("http")
    return client.create_experiment(
        name, artifact_location=None if served else f"file://{config.run.storage}/mlflow-artifacts/{name}"
    )


def mlflow_dataset(dataset: DatasetInfo) -> Any:  # noqa: ANN401 - mlflow.entities.Dataset
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
    client: Any,  # noqa: ANN401 - MlflowClient
    run_id: str,
    model_id: str | None,
    dataset: DatasetInfo,
    summary: dict[str, Any],
) -> None:
    """The run's final metrics, tied to the LoggedModel and the data set, and its curves and samples."""
    found = flatten({name: value for name, value in summary.items() if name != "evaluation"})
    scores = {name: value for name, value in found.items() if isinstance(value, float)}
    metrics = evaluation_metrics(scores, dataset, summary["step"], run_id, model_id)
    for name, points in summary.get("frechet_at_nfe", {}).items():
        for point in points:  # the x axis of MLflow's charts is the step
            values = {f"{name}_at_nfe": point["value"]}
            metrics += evaluation_metrics(values, dataset, point["nfe"], run_id, model_id)
    for first in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_BATCH])


def evaluation_metrics(
    scores: dict[str, float],
    dataset: DatasetInfo,
    step: int,
    run_id: str,
    model_id: str | None = None,
    time_ms: int | None = None,
) -> list[Any]:
    """Scores as MLflow's metrics, tied to the data set, the step and, where there is one, the LoggedModel."""
    from mlflow.entities import Metric

    entity, now = mlflow_dataset(dataset), time_ms or time.time_ns() // 10**6
    names = {"dataset_name": entity.name, "dataset_digest": entity.digest, "run_id": run_id, "model_id": model_id}
    return [Metric(name, value, now, step, **names) for name, value in scores.items()]


def log_grid(client: Any, run_id: str, picture: Path, step: int, time_ms: int | None = None) -> None:  # noqa: ANN401
    """A grid of samples as MLflow's image `samples` of a step, which its pages show over training."""
    if picture.is_file():
        from PIL import Image

        with Image.open(picture) as image:
            client.log_image(run_id, image, key="samples", step=step, timestamp=time_ms, synchronous=True)


RESULT_FILES = (
    "evaluation.json", "report.html", "report.png", "samples.png", "neighbours.png", "denoising.json", PER_IMAGE,
)  # fmt: skip


def fetch_results(tracking_uri: str, run_id: str, into: Path) -> tuple[str, Path]:
    """The name of an MLflow run, and a folder with the files of its evaluation that models are compared by.

    Raises:
        InputError: there is no such run.
        OSError: the server does not answer.
    """
    mlflow_environment()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder = into / run_id
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(tracking_uri)
        name = client.get_run(run_id).info.run_name
        there = {Path(str(file.path)).name for file in client.list_artifacts(run_id, "results")}
        for file in {*FILES, PER_IMAGE} & there:  # whose folders there are not those here, with every store
            os.replace(client.download_artifacts(run_id, f"results/{file}", str(folder)), folder / file)
    except MlflowException as error:
        told = f"MLflow run {run_id}: {one_line(error)}; at {tracking_uri}"
        raise (InputError if error.error_code == "RESOURCE_DOES_NOT_EXIST" else ConnectionError)(told) from None
    return str(name), folder


def log_standalone(
    tracking_uri: str, trained: str, name: str, dataset: DatasetInfo, values: dict[str, Any], folder: Path
) -> str:
    """An evaluation apart from training, as an MLflow run of its own below that which trained the model.

    Doing it twice changes nothing: the run's key is what was measured of which package, and with what result.

    Args:
        tracking_uri: of a server or database.
        trained: the id of the run that trained the model.
        name: of the new run.
        dataset: whose images were compared with.
        values: what `evaluation.json` says.
        folder: its report and pictures.

    Returns:
        The run's id.
    """
    mlflow_environment()
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Param

    client = MlflowClient(tracking_uri)
    parent = client.get_run(trained)
    models = parent.outputs.model_outputs if parent.outputs else []
    model_id, step = (models[-1].model_id, models[-1].step) if models else (None, 0)
    tags = {
        "mlflow.source.name": "python -m trainer.evaluate",
        "mlflow.source.git.commit": git_commit(),
        "mlflow.parentRunId": trained,
        "dualview.package_sha256": values["package_sha256"],
        "dualview.dataset_fingerprint": dataset.fingerprint,
    }
    key = hashlib.sha256(canonical(values).encode()).hexdigest()
    run_id = _made_once(client, parent.info.experiment_id, name, key, tags)
    if client.get_run(run_id).info.status == "FINISHED":
        return run_id
    settings = flatten(values["evaluation"], "evaluation.")
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in settings.items()])
    inputs = [DatasetInput(mlflow_dataset(dataset), [InputTag("mlflow.data.context", "evaluation")])]
    client.log_inputs(run_id, inputs, models=[LoggedModelInput(model_id)] if model_id else None)
    log_evaluation(client, run_id, model_id, dataset, {**values, "step": step})
    for file in RESULT_FILES:
        if (folder / file).is_file():
            client.log_artifact(run_id, str(folder / file), "results")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def sweep_run(config: RunConfig, name: str, digest: str, run_id: str | None, key: str) -> str:
    """The id of the MLflow run above a sweep's trials: this one if the server holds it, else that of the key."""
    client = _client(config)
    if run_id is not None and _is_there(client, run_id):
        client.set_terminated(run_id, "RUNNING")
        return run_id
    tags = {
        "mlflow.source.name": "python -m tuning",
        "mlflow.source.git.commit": git_commit(),
        "dualview.sweep": name,
        "dualview.sweep_sha256": digest,
    }
    return _made_once(client, _experiment(client, config), name, key, tags)


def adopt(config: RunConfig, parent_id: str, child_id: str) -> None:
    """Put an MLflow run below another; doing it twice changes nothing."""
    _client(config).set_tag(child_id, "mlflow.parentRunId", parent_id)


def log_sweep(
    config: RunConfig, run_id: str, texts: dict[str, str], metrics: dict[str, float] | None = None, *pictures: Path
) -> None:
    """A sweep's files and scores; doing it twice changes nothing that is shown."""
    from mlflow.entities import Metric

    client, now = _client(config), time.time_ns() // 10**6
    for file, text in texts.items():
        client.log_text(run_id, text, file)
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()])
    for picture in pictures:
        if picture.is_file():
            client.log_artifact(run_id, str(picture))


def end_run(config: RunConfig, run_id: str, status: str) -> None:
    """Set an MLflow run's status: FINISHED or FAILED."""
    _client(config).set_terminated(run_id, status)


def _client(config: RunConfig) -> Any:  # noqa: ANN401 - MlflowClient
    mlflow_environment()
    from mlflow import MlflowClient

    return MlflowClient(config.run.tracking_uri)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
