"""Runs that an earlier version left: two resumes on one machine agree bitwise, and a finished run is lengthened."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.integration.conftest import Train
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

BEFORE = ROOT / "tests" / "made_before" / "2026-11-28"
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")
NAMES = {"kept-699ce91b": [], "interrupted": ["run.name=interrupted", "ema.snapshot_every=64"]}


def resumed(on_ranks: Train, storage: Path, name: str, steps: int, reload: bool = False) -> RunPaths:
    """The run in a copy of the storage of then, resumed on two ranks to `steps`."""
    shutil.copytree(BEFORE / "kept" / name, storage / "kept" / name)
    sets = [f"run.storage={storage}", *NAMES[name], f"training.steps={steps}"]
    return on_ranks(BEFORE / "run.yaml", *sets, reload=reload)


def newest(folder: Path) -> Checkpoint:
    latest = find_latest(folder).folder
    assert latest is not None
    return Checkpoint(latest)


def agree(ours: Checkpoint, theirs: Checkpoint) -> None:
    for kind in KINDS:
        for name in theirs.shapes:
            assert torch.equal(ours.tensor(kind, name), theirs.tensor(kind, name)), (kind, name)


@pytest.mark.parametrize(("name", "steps"), [("kept-699ce91b", 12), ("interrupted", 80)])
def test_two_resumes_of_a_run_made_before_agree_bitwise(on_ranks: Train, tmp_path: Path, name: str, steps: int) -> None:
    first, second = (newest(resumed(on_ranks, tmp_path / turn, name, steps).checkpoints) for turn in ("a", "b"))
    assert first.step == second.step == steps
    agree(first, second)
    before = newest(BEFORE / "kept" / name / "checkpoints")
    assert before.step < steps
    assert not torch.equal(
        first.tensor("param", "network.leave.weight"), before.tensor("param", "network.leave.weight")
    )


def test_the_state_that_is_loaded_is_the_state_that_was_stored_bitwise(on_ranks: Train, tmp_path: Path) -> None:
    """Through DeepSpeed's engine and back."""
    paths = resumed(on_ranks, tmp_path, "interrupted", 80, reload=True)
    agree(newest(paths.root / "reloaded" / "checkpoints"), newest(paths.checkpoints))
