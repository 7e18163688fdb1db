"""The result does not depend on the number of workers, the ZeRO stage or the accumulation, nor on changing them midway.

Measured on fp32 over 50 steps; the bounds are those of rounding that Adam amplifies (docs/log.md).
"""

from pathlib import Path

import pytest
import torch

from tests.conftest import Cluster
from tests.integration.conftest import Train, losses
from tests.integration.test_training import train
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.config.load import load_config
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

# all that draws are made of: labels and their dropout, changed images, and a batch of 30 that 4 workers do not divide
COMMON = ["training.steps=50", "training.global_batch_size=30", "network.classes=10", "objective.label_dropout=0.2"]
COMMON += ["training.augment={horizontal_flip: true, crop_padding: 1}", "training.dequantise=uniform"]
COMMON += ["parallel.cpus_per_worker=0.5"]
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")


def shape(world: int, stage: int, micro: int | None = None) -> list[str]:
    """The settings of a world."""
    sets = [f"parallel.workers={world}", f"parallel.zero_stage={stage}"]
    return sets if micro is None else [*sets, f"parallel.micro_batch_size={micro}"]


@pytest.fixture(scope="module")
def baseline(cluster: Cluster, tiny: Path) -> RunPaths:
    """Two workers at ZeRO-2, unbroken."""
    return train(cluster, tiny, "world", *COMMON, *shape(2, 2))


def newest(paths: RunPaths) -> Checkpoint:
    latest = find_latest(paths.checkpoints).folder
    assert latest is not None
    return Checkpoint(latest)


def agree(ours: RunPaths, theirs: RunPaths) -> None:
    """Losses to 1e-5 at every step; parameters to 5e-4 and 2e-6 RMS.

    Attention's key biases are left out of the latter: softmax cancels them, so their true gradient is zero, and Adam
    makes steps of full size from what rounding leaves of it.
    """
    torch.testing.assert_close(torch.tensor(losses(ours)), torch.tensor(losses(theirs)), rtol=0, atol=1e-5)
    mine, wanted = newest(ours), newest(theirs)
    assert mine.step == wanted.step == 50
    names = [name for name in wanted.shapes if not name.endswith("to_k.bias")]
    assert len(names) < len(wanted.shapes)
    difference = torch.cat([(mine.tensor("param", n) - wanted.tensor("param", n)).flatten() for n in names])
    print(f"{ours.root.name}: max {difference.abs().max():.2e}, rms {difference.square().mean().sqrt():.2e}")
    assert difference.abs().max() <= 5e-4
    assert difference.square().mean().sqrt() <= 2e-6


SLOW = pytest.mark.slow
MATRIX = [
    pytest.param(4, 1, 3, marks=SLOW),
    *(
        pytest.param(world, stage, None, marks=SLOW)
        for world in (1, 2, 4)
        for stage in range(4)
        if (world, stage) not in ((1, 2), (2, 2))
    ),
]


@pytest.mark.parametrize(("world", "stage", "micro"), [(1, 2, None), *MATRIX])
def test_any_number_of_workers_stage_and_accumulation_learns_the_same(
    on_ranks: Train, tiny: Path, baseline: RunPaths, world: int, stage: int, micro: int | None
) -> None:
    """Also of Ray Train's workers, which trained the baseline, and ranks without Ray."""
    name = f"run.name=world-{world}-{stage}-{micro}"
    agree(on_ranks(tiny, name, *COMMON, *shape(world, stage, micro), world=world), baseline)


CHANGES = [
    (2, 3, 4, 0),
    *(pytest.param(*change, marks=SLOW) for change in [(2, 2, 1, 3), (1, 0, 2, 1), (4, 1, 2, 2), (1, 3, 4, 3)]),
]


@pytest.mark.parametrize(("world", "stage", "then", "then_stage"), CHANGES)
def test_a_run_goes_on_exactly_at_another_world_and_stage(
    on_ranks: Train, tiny: Path, baseline: RunPaths, world: int, stage: int, then: int, then_stage: int
) -> None:
    common = [f"run.name=change-{world}-{stage}-{then}-{then_stage}", *COMMON]
    paths = on_ranks(tiny, *common, *shape(world, stage), "training.steps=25", world=world)
    on_ranks(tiny, *common, *shape(then, then_stage), world=then, reload=True)
    saved, loaded = newest(paths), newest(RunPaths(paths.root / "reloaded"))
    assert saved.step == loaded.step == 25
    assert (loaded.manifest["world_size"], loaded.manifest["zero_stage"]) == (then, then_stage)
    for kind in KINDS:
        for each in saved.shapes:
            assert torch.equal(loaded.tensor(kind, each), saved.tensor(kind, each)), (kind, each)
    agree(on_ranks(tiny, *common, *shape(then, then_stage), world=then), baseline)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=SLOW) for stage in (0, 1, 3)), 2])
def test_the_sharded_ema_is_bitwise_that_of_the_gathered_masters(on_ranks: Train, tiny: Path, stage: int) -> None:
    """Every master is in a checkpoint of a run that makes one each step."""
    from diffusion.ema import decay, gamma_from_sigma_rel

    sets = ["training.steps=20", "run.checkpoint_every=1", "run.keep_checkpoints=100", *shape(2, stage)]
    paths = on_ranks(tiny, f"run.name=gathered-{stage}", *sets)
    config = load_config(tiny, [])
    last = newest(paths)
    for kind, sigma_rel in zip(("ema_0", "ema_1"), config.ema.tracks, strict=True):
        average = {name: torch.zeros(shape) for name, shape in last.shapes.items()}
        for step in range(1, 21):
            masters = Checkpoint(paths.checkpoints / f"step-{step:08d}")
            for name, value in average.items():
                value.lerp_(masters.tensor("param", name), 1 - decay(step, gamma_from_sigma_rel(sigma_rel)))
        for name, value in average.items():
            assert torch.equal(value, last.tensor(kind, name)), (kind, name)
    snapshot = Checkpoint(paths.ema / "step-00000016")
    at_sixteen = Checkpoint(paths.checkpoints / "step-00000016")
    for kind in ("ema_0", "ema_1"):
        for name in last.shapes:
            assert torch.equal(snapshot.tensor(kind, name), at_sixteen.tensor(kind, name)), (kind, name)
