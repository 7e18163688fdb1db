"""An MLflow client with short time limits, and the calls that several uploads share."""

# MLflow's client has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion import durable
from trainer.config.run import sqlite_url
from trainer.errors import InputError, one_line
from trainer.files import file_lock

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
DATABASE_TIMEOUT_S = 120.0
OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED"}
"""Error codes of MLflow that stand for a lost connection, a 5xx answer or a request to come back later."""
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


def mlflow_environment() -> None:
    """Defaults that keep MLflow quiet and quick to give up; set before it is imported, the user's own values win."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def is_outage(error: BaseException) -> bool:
    """Whether the server, its database or its store did not answer, so that the same call may succeed later.

    Anything else is an answer, such as that a run was deleted or that this user may not write, or a mistake of ours:
    the same call fails again.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if "(sqlite3." in str(error):  # a database of this machine or behind the server
        return "database is locked" in str(error)
    if isinstance(error, MlflowException):
        return error.error_code in OUTAGES
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3"):  # S3, which holds a server's artifacts
        return _is_s3_outage(error)
    if isinstance(error, RequestException):
        status = None if error.response is None else error.response.status_code
        return status is None or status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
    return isinstance(error, (ConnectionError, TimeoutError))


def _is_s3_outage(error: BaseException) -> bool:
    """An upload's error has the store's behind it, and that of a lost connection the connection's."""
    each: BaseException | None = error
    while each is not None:
        response: Any = getattr(each, "response", None)
        if response is not None:
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= SERVER_ERROR
        if {"ConnectionError", "HTTPClientError"} & {kind.__name__ for kind in type(each).__mro__}:
            return True
        each = each.__cause__ or each.__context__
    return False


def run_exists(client: "MlflowClient", run_id: str) -> bool:
    """Whether the server has this run, and it was not deleted."""
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def create_once(client: "MlflowClient", experiment: str, name: str, key: str, tags: dict[str, str]) -> str:
    """The id of the run with this key, created if there is none; a restart after a kill finds the run by its key."""
    runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if runs:
        return runs[0].info.run_id
    return client.create_run(experiment, run_name=name, tags={**tags, KEY_TAG: key}).info.run_id


def mlflow_client(tracking_uri: str) -> "MlflowClient":
    """A client of the server or database at `tracking_uri`, for runs and for the registry.

    A server is not contacted yet; a local database that is not there is made.

    Raises:
        InputError: the local database is not one that MLflow can use.
    """
    mlflow_environment()
    from mlflow import MlflowClient

    if not tracking_uri.startswith("sqlite:"):
        return MlflowClient(tracking_uri, tracking_uri)
    make_database(tracking_uri)
    _check_opens(tracking_uri)
    make_no_folders()
    try:
        return MlflowClient(tracking_uri, tracking_uri)
    except Exception as error:
        if is_outage(error):
            raise
        raise InputError(
            f"tracking URI = {tracking_uri}: not a database that this version of MLflow can use, perhaps half made by "
            f"a process that was killed: {one_line(error)}; allowed: to move it away and start with a new one"
        ) from None


def _check_opens(tracking_uri: str) -> None:
    """Refuse a file that SQLite cannot open, which MLflow would try for minutes.

    Raises:
        InputError: it cannot.
    """
    from sqlalchemy import make_url

    file = Path(make_url(tracking_uri).database or "").absolute()
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=DATABASE_TIMEOUT_S)) as database:
            database.execute("PRAGMA schema_version").fetchall()
    except sqlite3.Error as error:
        problem = error if file.is_file() else "is no file"
        raise InputError(f"tracking URI = {tracking_uri}: {problem}; allowed: MLflow's database, or none yet") from None


def make_no_folders() -> None:
    """Keep MLflow from making the folder of a database whose URL is quoted, which would be another one."""
    from mlflow.store.db import utils

    setattr(utils, "_make_parent_dirs_if_sqlite", _make_nothing)  # noqa: B010 - private


def _make_nothing(db_uri: str) -> None:
    pass


def make_database(tracking_uri: str) -> None:
    """Make MLflow's database at `sqlite:///FILE`, unless there is one.

    MLflow migrates a new database step by step, and one whose first migration was killed is of no use to it, ever. So
    it is made under another name, and gets its own once it is complete.
    """
    from sqlalchemy import make_url

    file = Path(make_url(tracking_uri).database or "").absolute()
    if file.exists():
        return
    with file_lock(file.with_name(f"{file.name}.lock"), f"{file}: another process is making it", DATABASE_TIMEOUT_S):
        if file.exists():
            return
        mlflow_environment()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        make_no_folders()
        with durable.replacing(file) as temporary:
            store = SqlAlchemyStore(sqlite_url(temporary), (file.parent / "mlflow-artifacts").as_uri())
            store.engine.dispose()
