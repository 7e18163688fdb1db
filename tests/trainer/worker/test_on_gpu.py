"""What would differ on a GPU: draws, copies, waiting, precision, a full memory. Skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from diffusion.device import full_precision
from tests.benchmarks.gpu import TINY, Bench, make_worker
from trainer.worker.meters import Meters
from trainer.worker.step import Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def worker_on(device: str, folder: Path, precision: str = "fp32") -> tuple[Worker, Meters]:
    bench = Bench(torch.device(device), TINY)
    full_precision()
    worker = make_worker(bench, bench.config(TINY.small, precision), SHAPE, folder / device)
    return worker, Meters(bench.device)


def losses(device: str, folder: Path, steps: int, precision: str = "fp32") -> list[float]:
    worker, meters = worker_on(device, folder, precision)
    for _ in range(steps):
        worker.train_step(meters)
    worker.settle(meters)
    worker.close()
    return worker.losses_since_checkpoint


def test_draws_do_not_depend_on_the_device(tmp_path: Path) -> None:
    here, there = (worker_on(device, tmp_path)[0] for device in ("cpu", "cuda"))
    mine, theirs = here.loader.batch(1, 0, 4), there.loader.batch(1, 0, 4)
    assert torch.equal(mine.x_0, theirs.x_0.cpu())
    assert torch.equal(mine.rows.eps, theirs.rows.eps.cpu())
    assert torch.equal(mine.rows.t, theirs.rows.t)
    here.close()
    there.close()


def test_batches_are_in_pinned_memory(tmp_path: Path) -> None:
    worker, _ = worker_on("cuda", tmp_path)
    batch = worker.loader.batch(1, 0, 4)
    assert batch.x_0.is_pinned()
    assert batch.rows.eps.is_pinned()
    worker.close()


def test_the_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    """The same draws and float32 without TF32: the first loss to rounding, the next as the rounding grows."""
    mine, theirs = (losses(device, tmp_path, 5) for device in ("cpu", "cuda"))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    assert mine == pytest.approx(theirs, rel=1e-3)


def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    assert losses("cuda", tmp_path / "a", 5, "bf16") == pytest.approx(losses("cuda", tmp_path / "b", 5), rel=0.05)


def test_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    """Whatever has the host wait for the device, but for the report of the step before, raises."""
    worker, meters = worker_on("cuda", tmp_path)
    for _ in range(2):
        worker.train_step(meters)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            worker.train_step(meters)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    worker.settle(meters)
    worker.close()


def test_a_step_that_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    worker, meters = worker_on("cuda", tmp_path)
    worker.train_step(meters)
    worker.settle(meters)
    with torch.no_grad():
        worker.engine.module.network.model.conv_in.bias.data[0] = torch.nan
    before = [flat.clone() for flat in (*worker.masters.flats, *worker.masters.moments("exp_avg"))]
    averages = [flat.clone() for flats in worker.ema.tracks.values() for flat in flats]
    worker.train_step(meters)
    after = [*worker.masters.flats, *worker.masters.moments("exp_avg")]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))
    moved = [flat for flats in worker.ema.tracks.values() for flat in flats]
    assert all(torch.equal(a, b) for a, b in zip(averages, moved, strict=True))
    worker.close()


def test_float32_is_not_tf32() -> None:
    full_precision()
    left, right = torch.randn(512, 512, dtype=torch.float64), torch.randn(512, 512, dtype=torch.float64)
    exact = left.float().double() @ right.float().double()
    error = (left.float().cuda() @ right.float().cuda()).cpu().double() - exact
    assert float(error.abs().max() / exact.abs().max()) < 1e-5  # TF32 has 10 bits of mantissa


def test_a_full_memory_is_the_error_that_workers_explain() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
