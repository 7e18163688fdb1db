"""Training on real Ray Train + DeepSpeed: stages, precisions, objectives, resume at each stage, non-finite losses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion.package import load_package, verify_package
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import FinishedRun, Train, configured, losses
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.run.journal import Journal, Metrics, NonFinite
from trainer.run.manifest import complete_steps, step_folder
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration

BF16_BAND = 0.02
"""Relative: bf16 keeps 8 bits of mantissa (2^-8 = 0.4 %) and the error of a loss compounds over the steps compared."""


def train(cluster: Cluster, tiny: Path, name: str, *sets: str) -> RunPaths:
    """Train in a gang of its own; no evaluation."""
    cluster.run("tests.integration.gang", str(tiny), f"run.name={name}", *sets)
    return configured(cluster, tiny, f"run.name={name}", *sets)[1]


@pytest.fixture(scope="module")
def stage3(on_ranks: Train, tiny: Path) -> RunPaths:
    """Fifty steps at stage 3, unbroken."""
    return on_ranks(tiny, "run.name=stage3", "parallel.zero_stage=3", "training.steps=50")


@pytest.mark.slow  # `make test` has one worker at stage 3, in test_world.py
def test_stage_3_loses_what_stage_2_loses(stage3: RunPaths, finished: FinishedRun) -> None:
    torch.testing.assert_close(torch.tensor(losses(stage3)), torch.tensor(finished.losses()[:50]), rtol=0, atol=1e-5)


@pytest.mark.slow  # `make test` breaks a run at stage 3 with a learned schedule, below
def test_stage_3_broken_and_resumed_equals_unbroken(on_ranks: Train, tiny: Path, stage3: RunPaths) -> None:
    sets, whole = ["run.name=stage3-broken", "parallel.zero_stage=3"], stage3
    broken = on_ranks(tiny, *sets, "training.steps=25")
    first_half = losses(broken)
    on_ranks(tiny, *sets, "training.steps=50")
    assert losses(broken)[:25] == first_half
    ours, theirs = (Checkpoint(find_latest(p.checkpoints).folder) for p in (broken, whole))  # type: ignore[arg-type]
    assert ours.step == theirs.step == 50
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"):
        for name in theirs.shapes:
            assert torch.equal(ours.tensor(kind, name), theirs.tensor(kind, name)), (kind, name)
    assert complete_steps(broken.ema) == complete_steps(whole.ema) == [8, 16, 24, 32, 40, 48]
    for step in complete_steps(whole.ema):
        mine, wanted = (Checkpoint(step_folder(p.ema, step)).manifest for p in (broken, whole))
        assert mine["files"] == wanted["files"], step  # the SHA-256 of each


def test_a_finished_run_has_packages_of_other_widths(cluster: Cluster, finished: FinishedRun, tmp_path: Path) -> None:
    """The run's own is that of its track, to the bit."""
    widths = [word for width in ("0.075", "0.1") for word in ("--sigma-rel", width)]
    cluster.run("trainer.ema", str(finished.paths.root), *widths, "--out", str(tmp_path / "widths"))
    other = load_package(tmp_path / "widths" / "sigma-0.075")[0].network
    own = load_package(finished.paths.package)[0].network
    assert isinstance(own, torch.nn.Module)
    assert isinstance(other, torch.nn.Module)
    assert verify_package(tmp_path / "widths" / "sigma-0.1") == verify_package(finished.paths.package)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), own.parameters(), strict=True))


def test_bf16_stays_within_its_band(on_ranks: Train, tiny: Path, finished: FinishedRun) -> None:
    paths = on_ranks(tiny, "run.name=bf16", "training.precision=bf16", "training.steps=50")
    ours, theirs = torch.tensor(losses(paths)), torch.tensor(finished.losses()[:50])
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=BF16_BAND, atol=0)


@pytest.mark.parametrize("stage", [0, 1])
def test_other_stages_accumulation_and_padding_lose_the_same(
    on_ranks: Train, tiny: Path, finished: FinishedRun, stage: int
) -> None:
    """Micro-batches of 5 do not divide a rank's 16 rows: the last one is padded with rows of weight zero."""
    sets = [f"parallel.zero_stage={stage}", "parallel.micro_batch_size=5", "training.steps=50"]
    paths = on_ranks(tiny, f"run.name=stage{stage}", *sets)
    torch.testing.assert_close(torch.tensor(losses(paths)), torch.tensor(finished.losses()[:50]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_score_view_with_a_linear_schedule_and_vlb_weighting_learns(cluster: Cluster, tiny: Path) -> None:
    sets = [
        "objective.prediction=score",
        "process.schedule.kind=linear",
        "objective.weighting.kind=vlb",
        "parallel.workers=1",
    ]
    paths = train(cluster, tiny, "score", *sets)
    errors = [record.values["epsilon_mse/log_snr_m4_m2"] for record in Journal(paths.journal).records(Metrics)]
    assert errors[0] == pytest.approx(1, abs=0.3)
    assert max(errors[-10:]) < 0.5


BESIDE_THE_NETWORK = {
    "learned-schedule": (
        "schedule.shift",
        ["process.kind=vp", "process.schedule.kind=learned", "objective.weighting.kind=vlb", "parallel.zero_stage=3"],
    ),
    "adaptive": (
        "log_variance.values",
        [
            "objective.weighting.kind=adaptive",
            "objective.time_sampling={kind: importance, bins: 8, decay: 0.9}",
            "process.reverse_variance=learned",
            "network.classes=10",
        ],
    ),
}


@pytest.mark.parametrize("name", [pytest.param("learned-schedule", marks=pytest.mark.slow), "adaptive"])
def test_what_is_trained_beside_the_network_survives_a_break_bitwise(on_ranks: Train, tiny: Path, name: str) -> None:
    """A learned schedule at stage 3; an adaptive lambda(t) with importance sampling, labels and a learned variance."""
    parameter, sets = BESIDE_THE_NETWORK[name]
    sets = [*sets, "run.checkpoint_every=10"]
    whole = on_ranks(tiny, f"run.name={name}-whole", *sets, "training.steps=20")
    on_ranks(tiny, f"run.name={name}-broken", *sets, "training.steps=10")
    broken = on_ranks(tiny, f"run.name={name}-broken", *sets, "training.steps=20")
    theirs = Checkpoint(find_latest(whole.checkpoints).folder)  # type: ignore[arg-type]
    ours = Checkpoint(find_latest(broken.checkpoints).folder)  # type: ignore[arg-type]
    assert ours.step == theirs.step == 20
    assert ours.loss_moments == theirs.loss_moments
    assert bool(theirs.loss_moments) == (name == "adaptive")
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"):
        for each in theirs.shapes:
            assert torch.equal(ours.tensor(kind, each), theirs.tensor(kind, each)), (kind, each)
    earlier = Checkpoint(whole.checkpoints / "step-00000010")
    assert not torch.equal(earlier.tensor("param", parameter), theirs.tensor("param", parameter))
    assert losses(broken) == losses(whole)


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_an_infinite_gradient_changes_no_weight(stage: int, world: int, tmp_path: Path) -> None:
    """Of one rank, which is the last: the others leave the step out as well."""
    command = [sys.executable, "-m", "tests.integration.gradient", str(stage)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "store")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for rank in ranks:
        output, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0, output
        assert re.search(r"norm (inf|nan) unchanged True", output), output


def test_nan_loss_stops_before_the_step_and_keeps_the_last_checkpoint(cluster: Cluster, tiny: Path) -> None:
    calm = [
        "run.name=diverging",
        "optim.lr=1e18",
        "optim.warmup_steps=0",
        "run.register_as=null",
        "run.checkpoint_every=1",
    ]
    output = cluster.run(
        "trainer", "--config", str(tiny), *(word for item in calm for word in ("--set", item)), expect=1
    )
    failed = next(line for line in output.splitlines() if line.startswith("failed:"))
    assert re.search(r"step \d+: the loss is (nan|inf) on rank 0, 1;", failed), failed
    _, paths = configured(cluster, tiny, *calm)
    record = next(Journal(paths.journal).records(NonFinite))
    latest = Checkpoint(find_latest(paths.checkpoints).folder)  # type: ignore[arg-type]
    assert latest.step == record.step - 1
    assert all(torch.isfinite(tensor).all() for tensor in latest.tensors("param").values())
