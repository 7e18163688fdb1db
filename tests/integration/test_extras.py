"""What DeepSpeed is told beside the stage, and how the network meets its device, changes no result.

Two real ranks with gloo, compared with the plain run of the same stage: bit by bit, where nothing is rounded otherwise.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from trainer.checkpoint import Checkpoint, find_latest
from trainer.paths import RunPaths
from trainer.settings import load_config

pytestmark = pytest.mark.integration

KINDS = ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")
COMMON = ["run.tracking_uri=http://127.0.0.1:9", "training.global_batch_size=12", "run.checkpoint_every=6"]
COMMON += ["network.classes=10", "network.dropout=0.2", "objective.label_dropout=0.2"]
BUCKETS = ["parallel.deepspeed.overlap_comm=true", "parallel.deepspeed.reduce_bucket_size=2000"]
BUCKETS_2 = [*BUCKETS, "parallel.deepspeed.allgather_bucket_size=2000"]
BUCKETS_3 = [
    *BUCKETS,
    "parallel.deepspeed.stage3_prefetch_bucket_size=2000",
    "parallel.deepspeed.stage3_param_persistence_threshold=0",
]
RECOMPUTED = ["parallel.deepspeed.activation_checkpointing=true"]
CHANNELS_LAST = ["parallel.channels_last=true"]


def trained(tiny: Path, storage: Path, name: str, steps: int, *sets: str) -> Checkpoint:
    """The last checkpoint of two ranks, which resume where there is one already."""
    sets = (f"run.storage={storage}", f"run.name={name}", f"training.steps={steps}", *COMMON, *sets)
    command = [sys.executable, "-m", "tests.integration.ranks", str(tiny), "2", "", *sets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = find_latest(RunPaths.of(load_config(tiny, list(sets))).checkpoints).folder
    assert folder is not None
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Checkpoint]:
    """Twelve steps of each stage, without extras."""
    storage = tmp_path_factory.mktemp("plain")
    return {stage: trained(tiny, storage, f"z{stage}", 12, f"parallel.zero_stage={stage}") for stage in (2, 3)}


@pytest.mark.parametrize(
    ("stage", "extras"),
    [
        pytest.param(2, BUCKETS_2, id="2-buckets"),
        pytest.param(3, BUCKETS_3, id="3-buckets"),
        pytest.param(2, RECOMPUTED, id="2-recomputed"),
        pytest.param(3, RECOMPUTED, id="3-recomputed"),
        pytest.param(2, CHANNELS_LAST, id="2-channels-last"),
    ],
)
def test_extras_change_no_result_and_survive_a_break(
    tiny: Path, tmp_path: Path, plain: dict[int, Checkpoint], stage: int, extras: list[str]
) -> None:
    sets = [f"parallel.zero_stage={stage}", *extras]
    trained(tiny, tmp_path, "extras", 6, *sets)
    same(trained(tiny, tmp_path, "extras", 12, *sets), plain[stage])


@pytest.mark.parametrize("stage", [2, 3])
def test_offloading_rounds_the_clipping_otherwise_and_survives_a_break(tiny: Path, tmp_path: Path, stage: int) -> None:
    """The gradient's norm is summed in another order there; nothing else differs."""
    sets = [f"parallel.zero_stage={stage}"]
    plain = trained(tiny, tmp_path, "plain", 1, *sets)
    sets += ["parallel.deepspeed.offload_optimizer=cpu"]
    sets += ["parallel.deepspeed.offload_parameters=cpu"] if stage == 3 else []
    offloaded = trained(tiny, tmp_path, "offloaded", 1, *sets)
    for kind in KINDS:
        for name in plain.shapes:
            ours, theirs = offloaded.tensor(kind, name), plain.tensor(kind, name)
            assert torch.linalg.vector_norm(ours - theirs) <= 1e-6 * torch.linalg.vector_norm(theirs), (kind, name)
    trained(tiny, tmp_path, "offloaded", 6, *sets)
    same(trained(tiny, tmp_path, "offloaded", 12, *sets), trained(tiny, tmp_path, "unbroken", 12, *sets))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_a_compiled_network_goes_on_in_the_checkpoints_of_one_that_is_not(
    tiny: Path, tmp_path: Path, plain: dict[int, Checkpoint]
) -> None:
    """The compiler rounds otherwise, so the two agree as two numbers of workers do."""
    trained(tiny, tmp_path, "compiled", 6)
    compiled = trained(tiny, tmp_path, "compiled", 12, "parallel.compile=true")
    assert compiled.shapes == plain[2].shapes
    for name in compiled.shapes:
        ours, theirs = compiled.tensor("param", name), plain[2].tensor("param", name)
        if not name.endswith("to_k.bias"):  # its true gradient is zero, and Adam makes steps of what rounding leaves
            torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)


def same(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Twelve steps were taken, and all that they leave agrees bit by bit."""
    assert ours.step == theirs.step == 12
    for kind in KINDS:
        for name in theirs.shapes:
            assert torch.equal(ours.tensor(kind, name), theirs.tensor(kind, name)), (kind, name)
