"""`training.on_nonfinite: skip` on real ranks and engines: the same step on all of them, then back to a checkpoint."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.conftest import TINY, Train
from trainer.checkpoint.reader import Checkpoint
from trainer.ema.sharded import EMA_KINDS
from trainer.run.journal import Journal, Metrics, NonFinite, Warned
from trainer.run.manifest import complete_steps, step_folder
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

SKIP = ["training.on_nonfinite=skip", "training.max_skips=3", "training.steps=12", "run.checkpoint_every=2"]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The run file of these tests, with storage of its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "run": {**TINY["run"], "storage": str(tmp_path), "keep_checkpoints": 20}}))
    return path


@pytest.fixture
def train(on_ranks: Train, config_file: Path) -> Train:
    """`train(name, spoilt, *sets)`: on two ranks; the noise of the steps in `spoilt` is NaN on the last of them."""
    storage = f"run.storage={config_file.parent}"
    return lambda name, spoilt, *sets: on_ranks(config_file, storage, f"run.name={name}", *SKIP, *sets, spoilt=spoilt)


def texts(paths: RunPaths, kind: type[Warned | NonFinite]) -> list[str]:
    return [record.text for record in Journal(paths.journal).records(kind)]


def kept(paths: RunPaths, step: int) -> Checkpoint:
    return Checkpoint(step_folder(paths.checkpoints, step))


def same(ours: Checkpoint, theirs: Checkpoint, kinds: tuple[str, ...] = ("param", "exp_avg", "exp_avg_sq")) -> bool:
    return all(
        torch.equal(ours.tensor(kind, name), theirs.tensor(kind, name)) for kind in kinds for name in theirs.shapes
    )


FEW = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]


@pytest.mark.parametrize("stage", FEW)
def test_a_skipped_step_is_left_out_on_all_ranks_and_the_next_one_is_taken(train: Train, stage: int) -> None:
    """Micro-batches of 5, so that the bad row is not in the first; weights that are skipped with are not kept."""
    sets = [f"parallel.zero_stage={stage}", "parallel.micro_batch_size=5", "training.steps=5", "run.checkpoint_every=1"]
    paths = train(f"stage{stage}", [3, 5], *sets)
    assert complete_steps(paths.checkpoints) == [1, 2, 4, 5]
    assert [kept(paths, step).optimizer_steps for step in (1, 2, 4, 5)] == [1, 2, 3, 3]
    assert not same(kept(paths, 2), kept(paths, 4))
    assert same(kept(paths, 4), kept(paths, 5))
    assert all(torch.isfinite(tensor).all() for tensor in kept(paths, 5).tensors("ema_0").values())
    metrics = Journal(paths.journal).records(Metrics)
    assert ["loss" in record.values for record in metrics] == [True, True, False, True, False]
    assert texts(paths, Warned) == [
        f"step {step} skipped: the loss on rank 1 is not finite; {count} skipped so far"
        for count, step in enumerate((3, 5), 1)
    ]


@pytest.mark.slow
def test_a_run_with_skipped_steps_resumes_bitwise(train: Train) -> None:
    whole = train("whole", [2, 5])
    train("broken", [2, 5], "training.steps=6")
    broken = train("broken", [2, 5])
    assert kept(whole, 12).optimizer_steps == kept(broken, 12).optimizer_steps == 10
    assert same(kept(broken, 12), kept(whole, 12), ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"))


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_after_too_many_in_a_row_the_last_good_weights_are_taken_up_again(train: Train, stage: int) -> None:
    paths = train(f"back{stage}", [6, 7, 8], f"parallel.zero_stage={stage}", "ema.snapshot_every=2")
    good, back = kept(paths, 4), kept(paths, 8)
    assert complete_steps(paths.checkpoints) == [2, 4, 8, 10, 12]
    assert texts(paths, Warned)[-1] == "step 8: 3 skipped in a row; going on with the weights of step 4"
    assert same(good, back)
    assert back.optimizer_steps == good.optimizer_steps == 4
    assert kept(paths, 12).optimizer_steps == 8
    assert all(torch.isfinite(tensor).all() for tensor in kept(paths, 12).tensors("param").values())
    assert complete_steps(paths.ema) == [2, 4, 6, 8, 10, 12]
    for step in (8, 10, 12):
        assert same(kept(paths, step), Checkpoint(step_folder(paths.ema, step)), EMA_KINDS)
    left_out = Checkpoint(step_folder(paths.ema, 6))
    assert left_out.optimizer_steps == 4
    assert same(left_out, good, EMA_KINDS)  # the averages stood still, as the weights did


@pytest.mark.slow
def test_where_going_back_does_not_help_it_gives_up_and_says_so(train: Train) -> None:
    paths = train("hopeless", [5, 6, 7, 8, 9, 10])
    [text] = texts(paths, NonFinite)
    assert "step 10: 3 steps in a row were not finite, again, with the weights of step 4; gave up" in text
    early = train("early", [1, 2, 3])
    [text] = texts(early, NonFinite)
    assert "step 3: 3 steps in a row were not finite, before the first checkpoint; gave up" in text
    assert not list(early.checkpoints.glob("*"))
