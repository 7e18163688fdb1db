"""A small run that still goes through everything, and what several tests read of it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cluster
from tests.integration.ranks import Job, Ranks
from trainer.config.load import load_config
from trainer.config.run_config import RunConfig
from trainer.run.journal import Journal, Metrics
from trainer.run.paths import RunPaths

STEPS, CHECKPOINT_EVERY = 150, 25
TINY: dict[str, Any] = {
    "network": {"kind": "unet", "channels": [8, 16], "attention": [False, True], "norm_groups": 4},
    "data": {"heldout_fraction": 0.05},  # 90 images, whose likelihoods are most of an evaluation
    "training": {"steps": STEPS, "global_batch_size": 32},
    "optim": {"warmup_steps": 4},
    "evaluation": {
        "metrics": ["vlb", "continuous_vlb", "nll", "frechet"],
        "samples": 130,
        "vlb_draws": 2,
        "nll_rtol": 0.1,
        "solver": {"kind": "dpmpp_2m", "num_steps": 4},
    },
    "run": {
        "experiment": "tiny",
        "register_as": "tiny",
        "gate": {"likelihood_gap": 100},  # of a network that is hardly trained
        "checkpoint_every": CHECKPOINT_EVERY,
        "log_every": 1,
    },
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file of a few seconds' training."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@dataclass(frozen=True)
class FinishedRun:
    """A run that went through to the registry."""

    config: RunConfig
    paths: RunPaths
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.paths.summary.read_text())

    def losses(self) -> list[float]:
        return losses(self.paths)


def losses(paths: RunPaths) -> list[float]:
    """The logged losses, the last record of each step."""
    steps = {record.step: record.values["loss"] for record in Journal(paths.journal).records(Metrics)}
    return [steps[step] for step in sorted(steps)]


def configured(cluster: Cluster, tiny: Path, *sets: str) -> tuple[RunConfig, RunPaths]:
    """The configuration that a command on this cluster resolves to."""
    places = [f"run.storage={cluster.storage}", f"run.tracking_uri={cluster.stack.tracking_uri}"]
    config = load_config(tiny, [*places, *sets])
    return config, RunPaths.of(config)


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tiny: Path) -> FinishedRun:
    """The unbroken run that others are compared with: 2 workers, ZeRO-2, fp32."""
    output = cluster.run("trainer", "--config", str(tiny))
    return FinishedRun(*configured(cluster, tiny), output)


Train = Callable[..., RunPaths]


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """`on_ranks(file, *sets, world=2, spoilt=[…], reload=False, device="cpu")`: the loop without Ray; the run's files.

    Its storage is the session's unless `sets` has another; nothing is evaluated or recorded.
    """
    ranks: dict[tuple[int, int, str], Ranks] = {}
    places = [f"run.storage={tmp_path_factory.mktemp('ranks')}", "run.tracking_uri=http://127.0.0.1:9"]

    def train(file: Path, *sets: str, world: int = 2, device: str = "cpu", **job: Any) -> RunPaths:
        sets = (*places, f"parallel.workers={world}", f"parallel.device={device}", *sets)
        stage = load_config(file, list(sets)).parallel.zero_stage
        pool = ranks.setdefault((world, stage, device), Ranks(world, device, reuse=stage < 3))
        return pool.run(Job(str(file), list(sets), **job))

    try:
        yield train
    finally:
        for pool in ranks.values():
            pool.close()
