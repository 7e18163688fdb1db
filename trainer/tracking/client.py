"""An MLflow client with short time limits, and the calls that several uploads share."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
KEY_TAG = "dualview.key"


def mlflow_environment() -> None:
    """Defaults that keep MLflow quiet and quick to give up; set before it is imported, the user's own values win."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def run_exists(client: "MlflowClient", run_id: str) -> bool:
    """Whether the server has this run."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def create_once(client: "MlflowClient", experiment: str, name: str, key: str, tags: dict[str, str]) -> str:
    """The id of the run with this key, created if there is none; a restart after a kill finds the run by its key."""
    runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if runs:
        return runs[0].info.run_id
    return client.create_run(experiment, run_name=name, tags={**tags, KEY_TAG: key}).info.run_id


def mlflow_client(tracking_uri: str) -> "MlflowClient":
    """A client of the server or database at `tracking_uri`, for runs and for the registry; nothing is contacted yet."""
    mlflow_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri, tracking_uri)
