"""A job and a queue for each test."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import store as store_module
from cluster.database import sqlite
from cluster.database.tables import Attempt
from cluster.files import log_name
from cluster.spec import JobSpec
from cluster.store import Store
from tests.servers.postgres import Postgres


def spec(name: str = "job", **fields: object) -> JobSpec:
    """A job that asks for one CPU."""
    defaults = {"name": name, "command": ["true"], "snapshot": "0" * 64, "driver": {"CPU": 1.0}}
    return JobSpec.model_validate({**defaults, **fields})


def log_of(store: Store, attempt: Attempt) -> Path:
    """The output that is kept of an attempt, in a queue whose files are in a folder."""
    return store.files.local(log_name(attempt.submission_id))


@pytest.fixture(autouse=True)
def fast_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk (no test cuts the power), and do not hold back jobs whose attempts end at once."""
    configure = sqlite._configure

    def faster(connection: sqlite3.Connection, record: object) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(sqlite, "_configure", faster)
    monkeypatch.setattr(store_module, "BACK_OFF_S", 0.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue/queue.db"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A Postgres server."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(server: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty Postgres database; a queue that is made there keeps its files in `tmp_path`/files."""
    monkeypatch.setenv("DUALVIEW_QUEUE_FILES", str(tmp_path / "files"))
    return server.database()
