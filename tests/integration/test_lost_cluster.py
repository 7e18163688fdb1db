"""A cluster that dies under a run: one line, exit code 75, nothing left; and a local one that ends with its run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra import lifecycle, processes
from infra.stack import addresses
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import configured
from trainer.run.journal import Journal, Metrics

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(600)]

SETS = ["run.name=lost", "run.register_as=null", "training.steps=100000"]
WORDS = [word for item in SETS for word in ("--set", item)]
MARK = "DUALVIEW_TEST_MARK"


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A stack of its own, parts of which may be killed."""
    stack = lifecycle.up(ROOT, tmp_path, kept=False)
    try:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= addresses(stack, tmp_path)
        yield Cluster(stack, environment, Path(environment["DUALVIEW_STORAGE"]))
    finally:
        lifecycle.stop(tmp_path)


def until(true: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (reached := bool(true())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached


def pids(cluster: Cluster, *names: str) -> list[int]:
    """The stack's processes whose command line begins with a program of one of these names."""
    chosen = list[int]()
    for pid in processes.stack_pids(cluster.stack.id):
        program = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
        if Path(program).name in names:
            chosen.append(pid)
    return chosen


@pytest.mark.parametrize(
    "names", [("raylet",), ("gcs_server",), ("raylet", "gcs_server")], ids=["raylet", "gcs", "head"]
)
def test_a_cluster_that_is_killed_ends_the_driver_with_one_line(
    own_cluster: Cluster, tiny: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    process = own_cluster.command("trainer", "--config", str(tiny), *WORDS)
    _, paths = configured(own_cluster, tiny, *SETS)
    assert until(lambda: any(Journal(paths.journal).records(Metrics)), 120)
    victims = pids(own_cluster, *names)
    assert len(victims) == len(names)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    [line] = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert "the same command goes on" in line
    assert until(lambda: not at_work(own_cluster), 60), at_work(own_cluster)


def at_work(cluster: Cluster) -> list[str]:
    titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes.stack_pids(cluster.stack.id)]
    return [
        title for title in titles if title.startswith(("ray::RayTrainWorker", "ray::TrainController", "ray::Ending"))
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_a_local_cluster_ends_with_its_run(tiny: Path, tmp_path: Path, number: int) -> None:
    """Without RAY_ADDRESS the run has a cluster of its own, of which nothing is left 60 s later."""
    mark, storage = uuid.uuid4().hex, tmp_path / "storage"
    temporary = Path(tempfile.mkdtemp(prefix="dv-", dir="/tmp"))  # the paths of Ray's sockets must be short
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {MARK: mark, "DUALVIEW_STORAGE": str(storage), "DS_ACCELERATOR": "cpu", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "--config", str(tiny), *WORDS],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    journal = Journal(storage / "tiny" / "lost" / "journal.jsonl")
    assert until(lambda: any(journal.records(Metrics)), 120)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (75 if number == signal.SIGTERM else -9), output
    assert until(lambda: not marked(mark), 60), marked(mark)
    assert not list(temporary.glob("pymp-*"))
    assert not [path for path in Path("/dev/shm").iterdir() if "plasma" in path.name]
    shutil.rmtree(temporary)


def marked(mark: str) -> list[str]:
    """The command lines of the live processes with this mark in their environment."""
    lines = list[str]()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                lines.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return lines
