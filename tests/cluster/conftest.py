"""A queue of a test's own."""

import sqlite3
from pathlib import Path

import pytest

from cluster import store as store_module
from cluster.spec import JobSpec
from cluster.store import Store


def spec(name: str = "job", **fields: object) -> JobSpec:
    """A job that asks for little."""
    return JobSpec.model_validate({"name": name, "command": ["true"], "snapshot": "0" * 64, **fields})


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill processes, but none cuts the power; and attempts that end at once are held back for no time."""
    configure = store_module._configure

    def faster(connection: sqlite3.Connection, record: object) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(store_module, "_configure", faster)
    monkeypatch.setattr(store_module, "HOLD_S", 0.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue/queue.db"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)
