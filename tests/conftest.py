"""What the suite shares: one real local stack (Ray head with token authentication, MLflow server) per session.

The stack is started on first use and stopped at the end, and it is an error if anything of it is left.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra import lifecycle, processes
from infra.stack import Stack, addresses

ROOT = Path(__file__).resolve().parent.parent

# The suite has stacks of its own: a shell that has sourced var/stack.env must not lead it to another.
STACK_VARIABLES = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "MLFLOW_TRACKING_URI", "DUALVIEW_STORAGE", "DUALVIEW_QUEUE",
    "DUALVIEW_QUEUE_FILES",
)  # fmt: skip
for name in STACK_VARIABLES:
    os.environ.pop(name, None)


@dataclass(frozen=True)
class Cluster:
    """The session's stack, and how to run a command against it."""

    stack: Stack
    environment: dict[str, str]
    storage: Path
    listening: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # address and process of each socket

    def command(self, *arguments: str, cwd: Path = ROOT, **changes: str) -> "subprocess.Popen[str]":
        """Start `python -m ARGUMENTS` with the stack's addresses."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env={**self.environment, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, expect: int = 0, cwd: Path = ROOT, **changes: str) -> str:
        """Run `python -m ARGUMENTS` to its end; its output, once its exit code is as expected."""
        process = self.command(*arguments, cwd=cwd, **changes)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == expect, f"exit {process.returncode}, expected {expect}:\n{output}"
        return output


def listening(pids: Iterable[int]) -> set[tuple[str, str]]:
    """The address and the process of each socket that these processes listen at."""
    found = set[tuple[str, str]]()
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found.add((each.laddr.ip, process.name()))
    return found


def _open_sockets() -> set[str]:
    """Inodes of this machine's sockets that listen beyond loopback, in a hundredth of the time of asking whose."""
    found = set[str]()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), open(table) as lines:
            for fields in map(str.split, lines):
                address = fields[1].partition(":")[0]
                is_loopback = address.endswith("7F") or address == f"{'0' * 24}01000000"
                if fields[3] == "0A" and not is_loopback:
                    found.add(fields[9])
    return found


def _watch_sockets(stack: Stack, found: set[tuple[str, str]], ended: threading.Event) -> None:
    """Look every second, whatever runs on the stack then, and now and then at all that it has."""
    known, looks = set[str](), 0
    while not ended.wait(1):
        opened = _open_sockets() - known
        if opened or looks % 60 == 0:
            found |= listening(processes.stack_pids(stack.id))
        known, looks = known | opened, looks + 1


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Ray head and a real MLflow server on loopback; nothing of them is left behind."""
    var = tmp_path_factory.mktemp("stack")
    stack = lifecycle.up(ROOT, var, kept=False)
    try:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= addresses(stack, var)
        found = set[tuple[str, str]]()
        ended = threading.Event()
        threading.Thread(target=_watch_sockets, args=(stack, found, ended), name="sockets", daemon=True).start()
        yield Cluster(stack, environment, Path(environment["DUALVIEW_STORAGE"]), found)
        ended.set()
    finally:
        lifecycle.stop(var)
    assert processes.stack_pids(stack.id) == []
    shutil.rmtree(var)


def half_migrated(file: Path) -> None:
    """An MLflow database as a first migration leaves it that was killed while it copied a table."""
    with sqlite3.connect(file) as database:
        database.executescript(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);"
            "INSERT INTO alembic_version VALUES ('867495a8f9d4');"
            "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name VARCHAR(256));"
        )
    database.close()
