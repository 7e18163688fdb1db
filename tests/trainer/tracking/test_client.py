"""Which errors are outages, and a database that is made whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from tests.conftest import half_migrated
from trainer.config.load import resolve
from trainer.config.run import RunSettings, check_tracking_uri
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.tracking import client as tracking
from trainer.tracking.client import is_outage, mlflow_client
from trainer.tracking.runs import experiment_id

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name, value in tracking.DEFAULTS.items():
        monkeypatch.setenv(name, value)


def answered(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("an answer", response=response)


def rest(code):
    return RestException({"error_code": code, "message": "an answer"})


def of_s3(name, base=Exception, module="botocore.exceptions", **fields):
    """An error of S3's client, which is installed where artifacts are kept there."""
    return type(name, (base,), {"__module__": module, **fields})("an answer")


def s3(status):
    return of_s3("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": status}})


HTTP_CLIENT_ERROR = type("HTTPClientError", (Exception,), {"__module__": "botocore.exceptions"})


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("nobody listens"),
        TimeoutError("nothing for 30 s"),
        requests.ConnectionError("reset"),
        requests.ReadTimeout("slow"),
        answered(502),
        answered(429),
        rest("INTERNAL_ERROR"),
        rest("TEMPORARILY_UNAVAILABLE"),
        rest("REQUEST_LIMIT_EXCEEDED"),
        MlflowException("API request failed: connection refused"),
        MlflowException("(sqlite3.OperationalError) database is locked", error_code=4),
        of_s3("EndpointConnectionError", HTTP_CLIENT_ERROR),
        s3(503),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:30]}",
)
def test_what_did_not_answer_is_an_outage(error):
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        answered(403),
        answered(413),
        rest("PERMISSION_DENIED"),
        rest("UNAUTHENTICATED"),
        rest("RESOURCE_DOES_NOT_EXIST"),
        rest("INVALID_PARAMETER_VALUE"),
        rest("RESOURCE_ALREADY_EXISTS"),
        rest("QUOTA_EXCEEDED"),
        MlflowException("(sqlite3.OperationalError) table _alembic_tmp_trace_tags already exists", error_code=4),
        MlflowException("(sqlite3.OperationalError) attempt to write a readonly database", error_code=4),
        PermissionError(13, "Permission denied", "/artifacts"),
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        of_s3("NoCredentialsError"),
        s3(403),
        KeyError("a mistake of ours"),
        InputError("run.experiment = 'digits': was deleted"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:30]}",
)
def test_an_answer_and_a_mistake_are_none(error):
    assert not is_outage(error)


@pytest.mark.parametrize(("status", "outage"), [(503, True), (403, False)])
def test_an_s3_upload_error_is_what_the_store_said(status, outage):
    failed = of_s3("S3UploadFailedError", module="boto3.exceptions")
    failed.__cause__ = s3(status)
    assert is_outage(failed) == outage


def test_a_server_that_is_not_there_is_an_outage(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException) as raised:
        mlflow_client("http://127.0.0.1:9").search_experiments()
    assert is_outage(raised.value)


def test_a_half_made_database_is_named_with_what_to_do(tmp_path):
    half_migrated(tmp_path / "mlflow.db")
    with pytest.raises(InputError, match=r"mlflow.db: not a database that this .*; allowed: to move it away"):
        mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"text", "file is not a database"), (b"SQLite format 3\0" + bytes(99), "file is not"), (None, "is no file")],
)
def test_a_file_that_is_no_database_is_refused_at_once(tmp_path, content, said):
    """MLflow by itself would try for minutes to open a folder."""
    if content is None:
        (tmp_path / "mlflow.db").mkdir()
    else:
        (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(InputError, match=rf"mlflow\.db: {said}.*; allowed: MLflow's database, or none yet"):
        mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_killed_first_use_leaves_no_database_and_the_next_one_makes_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    process = subprocess.Popen([sys.executable, "-m", "trainer.tracking.database", uri], cwd=os.getcwd())
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".writing-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    client = mlflow_client(uri)
    assert client.create_experiment("digits", artifact_location=f"file://{tmp_path}")
    assert client.search_registered_models() == []


def test_a_storage_of_any_name_has_its_database_and_its_files_inside(tmp_path, monkeypatch):
    """Nothing lands beside it, under the name that its quoted URL has."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = tmp_path / "my runs #1?a=b%41+c"
    storage.mkdir()
    config = resolve(RunConfig(run=RunSettings(storage=str(storage))))
    uri = str(config.run.tracking_uri)
    check_tracking_uri(uri)
    client = mlflow_client(uri)
    run = client.create_run(experiment_id(client, config)).info.run_id
    client.log_text(run, "text", "results/file.txt")
    assert Path(client.download_artifacts(run, "results/file.txt")).read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == [storage.name]
    assert (storage / "mlflow.db").stat().st_size
    assert list(storage.glob("mlflow-artifacts/*/*/artifacts/results/file.txt"))
