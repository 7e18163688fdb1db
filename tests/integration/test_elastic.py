"""A run takes as many workers as there is room for: a node comes, and goes again, while it trains."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from infra.stack import environment
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import configured, losses
from tests.integration.test_training import train
from trainer.run.journal import Journal, Metrics, Started
from trainer.run.paths import RunPaths

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

# long enough for Ray Train to see the node, without a checkpoint that nobody asked for
SETS = ["training.steps=300", "training.global_batch_size=1200", "run.checkpoint_every=1000", "optim.lr=1e-4"]
SETS += ["parallel.cpus_per_worker=1.5"]  # two workers on the node of 3 CPUs that there is
LIMIT_S = 150.0


@contextmanager
def another_node(cluster: Cluster, scratch: Path) -> Iterator[None]:
    """One more node, with room for one more worker, that is ended at the end."""
    command = [sys.executable, "-m", "tests.integration.node", f"127.0.0.1:{cluster.stack.ports['ray']}", "2"]
    surroundings = environment(cluster.stack, ROOT, cluster.storage.parent, 0)
    with (scratch / "node.log").open("w") as log:
        node = subprocess.Popen(command, env=surroundings, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield
    finally:
        node.terminate()
        node.wait(60)


def gangs(paths: RunPaths) -> list[tuple[int, int, list[int]]]:
    """Of each gang of workers: how many they were, the step they began after, and the steps they took."""
    found: list[tuple[int, int, list[int]]] = []
    for record, _ in Journal(paths.journal).read():
        if isinstance(record, Started):
            found.append((record.world_size, record.step, []))
        if isinstance(record, Metrics):
            found[-1][2].append(record.step)
    return found


def wait_for(paths: RunPaths, sizes: list[int]) -> None:
    """Until gangs of these sizes have begun."""
    deadline = time.monotonic() + LIMIT_S
    while (seen := [size for size, _, _ in gangs(paths)]) != sizes:
        assert time.monotonic() < deadline, f"gangs of {seen} workers, not yet of {sizes}"
        time.sleep(0.5)


def test_workers_come_and_go_with_the_nodes(cluster: Cluster, tiny: Path, tmp_path: Path) -> None:
    name = ["run.name=elastic", "parallel.workers=[1, 3]", *SETS]
    _, paths = configured(cluster, tiny, *name)
    process = cluster.command("trainer", "--config", str(tiny), *(part for each in name for part in ("--set", each)))
    try:
        wait_for(paths, [2])
        with another_node(cluster, tmp_path):
            wait_for(paths, [2, 3])
        output, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, output

    first, second, third = gangs(paths)
    assert (first[0], second[0], third[0]) == (2, 3, 2)
    assert 0 < second[1] == first[2][-1]  # no step was lost when the node came
    assert third[1] == second[1]  # and those since then when it went
    assert third[2][-1] == 300
    whole = train(cluster, tiny, "inelastic", *SETS)
    torch.testing.assert_close(torch.tensor(losses(paths)), torch.tensor(losses(whole)), rtol=0, atol=1e-5)
