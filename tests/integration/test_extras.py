"""What DeepSpeed is told beside the stage, and how the network meets its device, changes no result beyond rounding.

Two real ranks with gloo, compared with the plain run of the same stage: bit by bit, where nothing is rounded otherwise.
Where there is a GPU, the same with one rank on it, to the rounding that GPUs order as they like.
"""

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import Train as TrainOnRanks
from trainer.checkpoint.reader import Checkpoint, find_latest

pytestmark = pytest.mark.integration

KINDS = ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")
COMMON = ["training.global_batch_size=12", "run.checkpoint_every=6"]
COMMON += ["network.classes=10", "network.dropout=0.2", "objective.label_dropout=0.2"]
BUCKETS = ["parallel.deepspeed.overlap_comm=true", "parallel.deepspeed.reduce_bucket_size=2000"]
BUCKETS_2 = [*BUCKETS, "parallel.deepspeed.allgather_bucket_size=2000"]
BUCKETS_3 = [
    *BUCKETS,
    "parallel.deepspeed.stage3_prefetch_bucket_size=2000",
    "parallel.deepspeed.stage3_param_persistence_threshold=0",
]
RECOMPUTED = ["parallel.deepspeed.activation_checkpointing=true"]


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
Train = Callable[..., Checkpoint]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> str:
    """Where networks are."""
    return request.param


@pytest.fixture
def trained(on_ranks: TrainOnRanks, tiny: Path, tmp_path: Path, device: str) -> Train:
    """`trained(name, steps, *sets)`: the last checkpoint of a run of that name, which resumes where there is one."""
    return partial(last_checkpoint, on_ranks, tiny, tmp_path, device)


def last_checkpoint(
    on_ranks: TrainOnRanks, tiny: Path, storage: Path, device: str, name: str, steps: int, *sets: str
) -> Checkpoint:
    """Train on two ranks, or on one where each needs a GPU."""
    sets = (f"run.storage={storage}", f"run.name={name}", f"training.steps={steps}", *COMMON, *sets)
    folder = find_latest(on_ranks(tiny, *sets, world=1 if device == "cuda" else 2, device=device).checkpoints).folder
    assert folder is not None
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def plain(
    on_ranks: TrainOnRanks, tiny: Path, tmp_path_factory: pytest.TempPathFactory, device: str
) -> Callable[[int], Checkpoint]:
    """`plain(stage)`: twelve steps of a stage, without extras; each is trained once."""
    train = partial(last_checkpoint, on_ranks, tiny, tmp_path_factory.mktemp("plain"), device)
    return cache(lambda stage: train(f"z{stage}", 12, f"parallel.zero_stage={stage}"))


@pytest.mark.parametrize(
    ("stage", "extras"),
    [
        pytest.param(2, BUCKETS_2, id="2-buckets"),
        pytest.param(3, BUCKETS_3, id="3-buckets", marks=pytest.mark.slow),
        pytest.param(2, RECOMPUTED, id="2-recomputed"),
        pytest.param(3, RECOMPUTED, id="3-recomputed", marks=pytest.mark.slow),
    ],
)
def test_extras_change_no_result_and_survive_a_break(
    trained: Train, plain: Callable[[int], Checkpoint], device: str, stage: int, extras: list[str]
) -> None:
    sets = [f"parallel.zero_stage={stage}", *extras]
    trained("extras", 6, *sets)
    same(trained("extras", 12, *sets), plain(stage), device)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_offloading_rounds_the_clipping_otherwise_and_survives_a_break(trained: Train, device: str, stage: int) -> None:
    """The gradient's norm is summed in another order there; nothing else differs."""
    sets = [f"parallel.zero_stage={stage}"]
    plain = trained("plain", 1, *sets)
    sets += ["parallel.deepspeed.offload_optimizer=cpu"]
    sets += ["parallel.deepspeed.offload_parameters=cpu"] if stage == 3 else []
    offloaded = trained("offloaded", 1, *sets)
    for kind in KINDS:
        for name in plain.shapes:
            ours, theirs = offloaded.tensor(kind, name), plain.tensor(kind, name)
            assert torch.linalg.vector_norm(ours - theirs) <= 1e-6 * torch.linalg.vector_norm(theirs), (kind, name)
    trained("offloaded", 6, *sets)
    same(trained("offloaded", 12, *sets), trained("unbroken", 12, *sets), device)


COMPILED = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++"),
]


@pytest.mark.parametrize("extra", ["channels_last", pytest.param("compile", marks=COMPILED)])
def test_what_rounds_otherwise_goes_on_in_the_checkpoints_of_a_plain_run(trained: Train, extra: str) -> None:
    """The two agree as two numbers of workers do; without dropout, of which each draws its own numbers."""
    sets = ["network.dropout=0.0"]
    trained("changed", 6, *sets)
    changed, plain = trained("changed", 12, *sets, f"parallel.{extra}=true"), trained("plain", 12, *sets)
    close(changed, plain)
    assert any(not torch.equal(changed.tensor("param", name), plain.tensor("param", name)) for name in plain.shapes)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)], indirect=True)
def test_bf16_on_a_gpu_learns_what_fp32_does(trained: Train, plain: Callable[[int], Checkpoint]) -> None:
    ours, theirs = trained("bf16", 12, "training.precision=bf16").manifest["loss"], plain(2).manifest["loss"]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.02)


def close(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Parameters agree as those of two numbers of workers do, but for one whose true gradient is zero."""
    assert ours.shapes == theirs.shapes
    for name in theirs.shapes:
        if not name.endswith("to_k.bias"):
            torch.testing.assert_close(ours.tensor("param", name), theirs.tensor("param", name), rtol=0, atol=5e-4)


def same(ours: Checkpoint, theirs: Checkpoint, device: str) -> None:
    """Twelve steps were taken, and all that they leave agrees bit by bit on CPUs."""
    assert ours.step == theirs.step == 12
    if device == "cuda":
        close(ours, theirs)
        return
    for kind in KINDS:
        for name in theirs.shapes:
            assert torch.equal(ours.tensor(kind, name), theirs.tensor(kind, name)), (kind, name)
