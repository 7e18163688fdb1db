"""The MLflow parent run of a sweep's trials."""
# MLflow's client has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import time
from pathlib import Path

from trainer.config.run_config import RunConfig
from trainer.run.provenance import git_commit
from trainer.tracking.client import create_once, mlflow_client, run_exists
from trainer.tracking.runs import experiment_id


def sweep_run(config: RunConfig, name: str, digest: str, run_id: str | None, key: str) -> str:
    """The id of a sweep's parent run: `run_id` if the server has it, else the run with this key, created if needed."""
    client = mlflow_client(str(config.run.tracking_uri))
    if run_id is not None and run_exists(client, run_id):
        client.set_terminated(run_id, "RUNNING")
        return run_id
    tags = {
        "mlflow.source.name": "python -m tuning",
        "mlflow.source.git.commit": git_commit(),
        "dualview.sweep": name,
        "dualview.sweep_sha256": digest,
    }
    return create_once(client, experiment_id(client, config), name, key, tags)


def adopt(config: RunConfig, parent_id: str, child_id: str) -> None:
    """Make an MLflow run the child of another; idempotent."""
    mlflow_client(str(config.run.tracking_uri)).set_tag(child_id, "mlflow.parentRunId", parent_id)


def log_sweep(
    config: RunConfig, run_id: str, texts: dict[str, str], metrics: dict[str, float] | None = None, *pictures: Path
) -> None:
    """Log a sweep's texts, scores and pictures; idempotent in what MLflow shows."""
    from mlflow.entities import Metric

    client, now = mlflow_client(str(config.run.tracking_uri)), time.time_ns() // 10**6
    for file, text in texts.items():
        client.log_text(run_id, text, file)
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()])
    for picture in pictures:
        if picture.is_file():
            client.log_artifact(run_id, str(picture))


def end_run(config: RunConfig, run_id: str, status: str) -> None:
    """Set an MLflow run's status: FINISHED or FAILED."""
    mlflow_client(str(config.run.tracking_uri)).set_terminated(run_id, status)
