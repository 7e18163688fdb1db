"""A job and a queue for each test."""

import sqlite3
from pathlib import Path

import pytest

from cluster import schema, store as store_module
from cluster.spec import JobSpec
from cluster.store import Store


def spec(name: str = "job", **fields: object) -> JobSpec:
    """A job that asks for one CPU."""
    defaults = {"name": name, "command": ["true"], "snapshot": "0" * 64, "driver": {"CPU": 1.0}}
    return JobSpec.model_validate({**defaults, **fields})


@pytest.fixture(autouse=True)
def fast_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk (no test cuts the power), and do not hold back jobs whose attempts end at once."""
    configure = schema._configure

    def faster(connection: sqlite3.Connection, record: object) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(schema, "_configure", faster)
    monkeypatch.setattr(store_module, "BACK_OFF_S", 0.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue/queue.db"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)
