"""SIGTERM at every stage of a real run: exit code 75 in time, nothing left running, and the same command goes on."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import processes
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import FinishedRun, configured, losses
from trainer.run.journal import CheckpointSaved, Journal, Metrics
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

DEADLINE_S = 240.0
STOP_S = 10.0
CHECKPOINT_S = 5.0  # of a tiny network, on a busy machine
TIMES = 20


@dataclass
class Running:
    """A command that was started, and what can be seen of it from outside."""

    process: "subprocess.Popen[str]"
    output: Path
    paths: RunPaths
    journal_before: int
    attempt_before: str | None

    def prints(self, text: str) -> bool:
        return text in self.output.read_text()

    def listens(self) -> bool:
        """Whether SIGTERM has a handler: the first line of `main`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def has_asked(self) -> bool:
        """Whether workers were asked for."""
        return attempt(self.paths) != self.attempt_before

    def last_step(self) -> int:
        """The last step that this command has trained."""
        records = Journal(self.paths.journal).records(Metrics, self.journal_before)
        return max((record.step for record in records), default=0)

    def saves(self) -> bool:
        return any(Journal(self.paths.journal).records(CheckpointSaved, self.journal_before))


def attempt(paths: RunPaths) -> str | None:
    return paths.attempt.read_text() if paths.attempt.exists() else None


@dataclass(frozen=True)
class Stage:
    """A stage of a run: how to see that it has begun, about how long it takes, and what to set for it."""

    begun: Callable[[Running], bool]
    seconds: float
    sets: tuple[str, ...] = ()


def holds_lock(pid: int, lock: Path) -> bool:
    """Whether a process has the run's lock file open, in which case it holds the lock or waits for it."""
    links = list[str]()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(link))
    return str(lock) in links


LONG = ("training.steps=100000",)
MUCH = ("training.steps=5", "evaluation.samples=100000", "evaluation.metrics=[frechet]")
BRIEF = ("training.steps=5", "evaluation.samples=130", "evaluation.metrics=[vlb]")
STAGES = {
    "imports": Stage(Running.listens, 2),
    "preparing": Stage(lambda run: holds_lock(run.process.pid, run.paths.lock), 2),
    "connecting": Stage(lambda run: run.prints("to train on"), 2),
    "waiting for room": Stage(Running.has_asked, 10, ("parallel.cpus_per_worker=64",)),
    "group start": Stage(Running.has_asked, 8, LONG),
    "training": Stage(lambda run: run.last_step() > 0, 3, LONG),
    "writing a checkpoint": Stage(Running.saves, 0.5, (*LONG, "run.checkpoint_every=2")),
    "evaluating": Stage(lambda run: run.prints("evaluating step"), 10, MUCH),
    "packaging": Stage(lambda run: run.last_step() == 5, 2, BRIEF),
    "registering": Stage(lambda run: run.prints("evaluated in"), 1, (*BRIEF, "run.register_as=stopped")),
}


def at_work(cluster: Cluster) -> dict[int, str]:
    """Pid and title of the stack's processes that are at work for somebody: actors, and workers with a task.

    Ray's coordinator of autoscaling is one for the whole cluster, and stays with it.
    """
    titles = dict[int, str]()
    for pid in processes.stack_pids(cluster.stack.id):
        with suppress(OSError):
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_text().strip("\0")
    return {
        pid: title for pid, title in titles.items() if re.match(r"ray::(?!IDLE|_AutoscalingCoordinatorActor)", title)
    }


def until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (reached := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached


def stopped_at(
    stage: Stage, cluster: Cluster, tiny: Path, name: str, tmp_path: Path, delay_s: float, number: int = signal.SIGTERM
) -> float:
    """Start the run, stop it at the stage after a delay, and see it end; the seconds that took."""
    sets = (f"run.name={name}", "run.register_as=null", *stage.sets)
    _, paths = configured(cluster, tiny, *sets)
    before, output = at_work(cluster), tmp_path / "output"
    journal, begun = Journal(paths.journal).size(), attempt(paths)
    words = (word for item in sets for word in ("--set", item))
    with output.open("w") as file:
        command = [sys.executable, "-m", "trainer", "--config", str(tiny), *words]
        process = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=file, stderr=file, text=True)
    run = Running(process, output, paths, journal, begun)
    assert until(lambda: process.poll() is not None or stage.begun(run), DEADLINE_S), output.read_text()
    time.sleep(delay_s)
    began = time.monotonic()
    os.kill(process.pid, number)
    code = process.wait(STOP_S + CHECKPOINT_S)
    seconds = time.monotonic() - began
    assert code == 75 or (code == 0 and paths.summary.exists()), output.read_text()
    assert until(lambda: at_work(cluster).keys() <= before.keys(), 60), (at_work(cluster), before)
    return seconds


@pytest.mark.parametrize("stage", ["imports", "group start", "evaluating"])
def test_a_run_that_is_told_to_stop_stops(stage: str, cluster: Cluster, tiny: Path, tmp_path: Path) -> None:
    stopped_at(STAGES[stage], cluster, tiny, f"once-{stage.replace(' ', '-')}", tmp_path, 0.3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_whenever_it_is_told_to_stop_it_stops(stage: str, cluster: Cluster, tiny: Path, tmp_path: Path) -> None:
    chance = random.Random(stage)
    finishes = stage in ("packaging", "registering")
    for attempt in range(TIMES):
        name = f"{stage.replace(' ', '-')}-{attempt if finishes else 0}"
        number = chance.choice([signal.SIGTERM, signal.SIGINT])
        stopped_at(STAGES[stage], cluster, tiny, name, tmp_path, chance.uniform(0, STAGES[stage].seconds), number)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_was_stopped_again_and_again_ends_as_the_unbroken_one(
    cluster: Cluster, tiny: Path, finished: FinishedRun, tmp_path: Path
) -> None:
    chance = random.Random(0)
    stages = [stage for name, stage in STAGES.items() if name in ("connecting", "training")]
    for stage in stages * 4:
        plain = Stage(stage.begun, stage.seconds)
        stopped_at(plain, cluster, tiny, "again-and-again", tmp_path, chance.uniform(0, stage.seconds))
    sets = ("run.name=again-and-again", "run.register_as=null")
    cluster.run("trainer", "--config", str(tiny), *(word for item in sets for word in ("--set", item)))
    _, paths = configured(cluster, tiny, *sets)
    assert losses(paths) == finished.losses()
