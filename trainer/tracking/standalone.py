"""Standalone evaluations as MLflow runs of their own, and fetching the results of another run's evaluation."""
# MLflow's client has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.locations import check_location, files_of
from trainer.config.run_config import canonical
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError, RunFailedError, one_line
from trainer.evaluate.comparison import FILES
from trainer.evaluate.results import PER_IMAGE
from trainer.files import MAX_JSON_BYTES
from trainer.run.provenance import git_commit
from trainer.run.summary import Evaluated
from trainer.tracking.client import create_once, is_outage, mlflow_client, run_exists
from trainer.tracking.runs import flatten, log_evaluation, mlflow_dataset

RESULTS: dict[str, int] = dict.fromkeys((*FILES, PER_IMAGE), MAX_JSON_BYTES)
"""What models are compared by, and how many bytes each file may have."""

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESULT_FILES = (
    "evaluation.json", "report.html", "report.png", "samples.png", "neighbours.png", "denoising.json", PER_IMAGE,
)  # fmt: skip


def check_run(client: "MlflowClient", run_id: str, tracking_uri: str) -> None:
    """Raise InputError where a run's files are on another web server than the one that names it."""
    try:
        check_location(str(client.get_run(run_id).info.artifact_uri), tracking_uri)
    except ValueError as error:
        raise InputError(f"MLflow run {run_id}: {error}") from None


def fetch_results(tracking_uri: str, run_id: str, into: Path) -> tuple[str, Path]:
    """The name of an MLflow run, and a folder with the files of its evaluation that models are compared by.

    Raises:
        InputError: there is no such run, or the server refuses it.
        ConnectionError: the server does not answer.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,127}", run_id, re.ASCII):  # which a registry can have chosen
        raise InputError(f"MLflow run {run_id[:80]!r}: allowed: the id of a run, of letters, digits, - and _")
    folder = into / run_id
    folder.mkdir(parents=True, exist_ok=True)
    client = mlflow_client(tracking_uri)
    try:
        check_run(client, run_id, tracking_uri)
        name = client.get_run(run_id).info.run_name
        for file in files_of(client.list_artifacts(run_id, "results"), RESULTS):
            # whose folders there are not those here, with every store
            os.replace(client.download_artifacts(run_id, f"results/{file}", str(folder)), folder / file)
    except Exception as error:  # noqa: BLE001 - told apart here
        message = f"MLflow run {run_id}: {one_line(error)}; at {tracking_uri}"
        raise (ConnectionError if is_outage(error) else InputError)(message) from None
    return str(name), folder


def log_standalone(
    tracking_uri: str,
    trained: str,
    name: str,
    dataset: DatasetInfo,
    model: dict[str, Any],
    evaluated: Evaluated,
    folder: Path,
) -> str | None:
    """Log a standalone evaluation as an MLflow run of its own, a child of the run that trained the model.

    Idempotent: the run's key is a digest of the package, the settings and the results.

    Args:
        tracking_uri: tracking URI of a server or database.
        trained: id of the MLflow run that trained the model.
        name: name of the new run.
        dataset: data set that the model was evaluated on.
        model: identity of the model in `evaluation.json`: `package_sha256` and the `evaluation` settings.
        evaluated: results of the evaluation.
        folder: folder with the report and pictures.

    Returns:
        The new run's id; None where the run that trained the model was deleted, so that there is no place for it.

    Raises:
        ConnectionError: MLflow does not answer.
        RunFailedError: MLflow refuses it.
    """
    with _told_apart():
        client = mlflow_client(tracking_uri)
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Param

        if not run_exists(client, trained):
            return None
        parent = client.get_run(trained)
        models = parent.outputs.model_outputs if parent.outputs else []
        model_id, step = (models[-1].model_id, models[-1].step) if models else (None, 0)
        tags = {
            "mlflow.source.name": "python -m trainer.evaluate",
            "mlflow.source.git.commit": git_commit(),
            "mlflow.parentRunId": trained,
            "dualview.package_sha256": model["package_sha256"],
            "dualview.dataset_fingerprint": dataset.fingerprint,
        }
        results = {name: value for name, value in evaluated.to_json().items() if name != "protocol"}
        key = hashlib.sha256(canonical({**model, **results}).encode()).hexdigest()
        run_id = create_once(client, parent.info.experiment_id, name, key, tags)
        if client.get_run(run_id).info.status == "FINISHED":
            return run_id
        settings = flatten(model["evaluation"], "evaluation.")
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        inputs = [DatasetInput(mlflow_dataset(dataset), [InputTag("mlflow.data.context", "evaluation")])]
        client.log_inputs(run_id, inputs, models=[LoggedModelInput(model_id)] if model_id else None)
        log_evaluation(client, run_id, model_id, dataset, step, evaluated, evaluated.metrics())
        for file in RESULT_FILES:
            if (folder / file).is_file():
                client.log_artifact(run_id, str(folder / file), "results")
        client.set_terminated(run_id, "FINISHED")
        return run_id


@contextmanager
def _told_apart() -> Generator[None]:
    """Turn an error of MLflow into a ConnectionError for an outage, and a RunFailedError for anything else."""
    try:
        yield
    except Exception as error:
        kind = ConnectionError if is_outage(error) else RunFailedError
        raise kind(one_line(error)) from error
