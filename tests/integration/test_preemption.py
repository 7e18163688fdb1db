"""A run that has to give its machines back, for real: SIGTERM or the queue, exit code 75, and on as before."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from cluster.store import Store
from infra.processes import stack_pids
from tests.conftest import Cluster
from tests.integration.conftest import FinishedRun, configured, losses
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.run.journal import Journal, Metrics, Stopped
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

DEADLINE_S = 120.0


def sets(name: str) -> list[str]:
    """No checkpoint but those that are asked for, and the last."""
    return [f"run.name={name}", "run.register_as=null", "run.checkpoint_every=1000", "evaluation.metrics=[vlb]"]


def command(tiny: Path, name: str) -> list[str]:
    return ["trainer", "--config", str(tiny), *(word for item in sets(name) for word in ("--set", item))]


def until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something to be so while a process runs."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(paths: RunPaths) -> int:
    return max((record.step for record in Journal(paths.journal).records(Metrics)), default=0)


def goes_on_bitwise(cluster: Cluster, tiny: Path, name: str, paths: RunPaths, finished: FinishedRun) -> None:
    """The run that was stopped has a checkpoint of its last step, and ends as the unbroken one did."""
    stopped = Checkpoint(find_latest(paths.checkpoints).folder)  # type: ignore[arg-type]
    assert 5 <= stopped.step == last_step(paths) < finished.config.training.steps
    output = cluster.run(*command(tiny, name))
    assert f"resuming after step {stopped.step} of" in output
    same_tensors(paths, finished)


def same_tensors(paths: RunPaths, finished: FinishedRun) -> None:
    """The run ends as the unbroken one did, to the bit."""
    assert losses(paths) == finished.losses()
    ours, theirs = (Checkpoint(find_latest(p.checkpoints).folder) for p in (paths, finished.paths))  # type: ignore[arg-type]
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"):
        for each in theirs.shapes:
            assert torch.equal(ours.tensor(kind, each), theirs.tensor(kind, each)), (kind, each)


@pytest.mark.slow  # the queue's request below does the same, and test_stopping sends SIGTERM at every stage
def test_sigterm_makes_a_checkpoint_and_the_same_command_goes_on(
    cluster: Cluster, tiny: Path, finished: FinishedRun
) -> None:
    _, paths = configured(cluster, tiny, *sets("terminated"))
    process = cluster.command(*command(tiny, "terminated"))
    until(lambda: last_step(paths) >= 5, process)
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75, output
    assert "preempted (SIGTERM): the last checkpoint is of step" in output
    [record] = Journal(paths.journal).records(Stopped)
    assert record.text == "SIGTERM"
    goes_on_bitwise(cluster, tiny, "terminated", paths, finished)


def test_a_run_in_the_queue_makes_room_and_ends_as_the_unbroken_one(
    cluster: Cluster, tiny: Path, finished: FinishedRun, tmp_path: Path
) -> None:
    """A job of higher priority needs two of three CPUs once the run, which has two, has come to step 5."""
    queue = f"sqlite:///{tmp_path}/queue/queue.db"
    _, paths = configured(cluster, tiny, *sets("outranked"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "README").write_text("a job needs no more\n")
    cluster.run("cluster", "submit", "--", "python", "-m", *command(tiny, "outranked"), DUALVIEW_QUEUE=queue)
    words = ["--hold", "--priority", "9", "--driver", "CPU=2", "--working-dir", str(tmp_path / "code")]
    cluster.run("cluster", "submit", *words, "--", "true", DUALVIEW_QUEUE=queue)
    dispatcher = cluster.command(
        "cluster", "dispatch", "--drain", "--poll", "0.2", "--min-runtime", "1s", DUALVIEW_QUEUE=queue
    )
    try:
        until(lambda: last_step(paths) >= 5, dispatcher)
        Store.open(queue).release(2)  # at once: the run has few steps
        output, _ = dispatcher.communicate(timeout=DEADLINE_S)
    finally:
        dispatcher.kill()
        dispatcher.communicate()
    run, other = json.loads(cluster.run("cluster", "list", "--json", DUALVIEW_QUEUE=queue))
    assert (run["state"], other["state"]) == ("succeeded", "succeeded"), output
    left, again = run["attempts"]
    assert (left["exit_code"], left["asked_by"], again["exit_code"]) == (75, other["id"], 0)
    assert left["ended_at"] <= other["attempts"][0]["began_at"] <= other["attempts"][0]["ended_at"] <= again["began_at"]
    assert len(set(left["placement"]["bundles"])) == 1
    log = cluster.run("cluster", "logs", str(run["id"]), DUALVIEW_QUEUE=queue)
    assert f"preempted (makes room for job {other['id']}): the last checkpoint is of step" in log
    assert "resuming after step" in log
    same_tensors(paths, finished)


def test_before_the_workers_have_begun_there_is_nothing_to_wait_for(cluster: Cluster, tiny: Path) -> None:
    """The workers ask for more CPUs than there are, so they never begin."""
    process = cluster.command(*command(tiny, "waiting"), "--set", "parallel.cpus_per_worker=64")
    _, paths = configured(cluster, tiny, *sets("waiting"))
    until(paths.attempt.exists, process)
    began = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75, output
    assert "preempted (SIGTERM): there is no checkpoint yet; the same command goes on" in output
    assert time.monotonic() - began < 30


@pytest.mark.chaos
def test_a_rank_that_hangs_ends_the_run_to_be_tried_again(cluster: Cluster, tiny: Path, finished: FinishedRun) -> None:
    """One of two ranks is held: the other waits for it, and its stacks say where."""
    words = [*command(tiny, "hung"), "--set", "run.hang_floor=3", "--set", "run.checkpoint_every=5"]
    _, paths = configured(cluster, tiny, *sets("hung"))
    process = cluster.command(*words)
    until(lambda: last_step(paths) >= 6, process)
    workers = [
        each
        for pid in stack_pids(cluster.stack.id)
        if "ray::RayTrainWorker" in " ".join((each := psutil.Process(pid)).cmdline())
    ]
    workers[-1].send_signal(signal.SIGSTOP)
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    assert process.returncode == 75, output
    [line] = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert "failed: no step has ended for 0:00:03" in line
    assert "the stacks of 1 of 2 ranks: " in line
    assert "the same command goes on" in line
    [stacks] = [file for file in paths.root.glob("stacks/*/rank-*.txt") if file.stat().st_size]
    assert "most recent call first" in stacks.read_text()
    assert "in train_step" in stacks.read_text()
    output = cluster.run(*words)
    assert "resuming after step" in output
    assert losses(paths)[-1] == finished.losses()[-1]
