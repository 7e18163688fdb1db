"""`python -m tests.integration.ranks CONFIG WORLD BAD PATH=VALUE …`: the loop on real ranks, some of its steps spoilt.

BAD is a list of steps with commas: there the noise of one of the last rank's rows is NaN, as a broken device would have
it. With BAD = reload nothing is trained: what was loaded is written to the run's folder `reloaded` again. Ranks are
processes of their own with DeepSpeed and gloo, without Ray; with parallel.device = cuda, a GPU each and NCCL.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from trainer.config.load import load_config
from trainer.data.prepare import prepare
from trainer.run import attempt as checkpoint
from trainer.run.paths import RunPaths
from trainer.worker.batch_plan import BatchPlan, PlannedRows
from trainer.worker.loop import run, start_worker
from trainer.worker.step import WorkerContext

DRAWN = BatchPlan.rows


def spoilt(bad: set[int]) -> None:
    """Make the noise of these steps NaN in the row before the last of the global batch."""

    def rows(plan: BatchPlan, step: int, first: int, count: int) -> PlannedRows:
        made, row = DRAWN(plan, step, first, count), plan.training.global_batch_size - 2
        if step not in bad or not first <= row < first + count:
            return made
        eps = made.eps.clone()
        eps[row - first] = torch.nan
        return replace(made, eps=eps)

    BatchPlan.rows = rows  # pyright: ignore[reportAttributeAccessIssue]


def reload(context: WorkerContext) -> None:
    """Load the newest checkpoint, and write it elsewhere."""
    worker = start_worker(context)
    worker.context = replace(context, paths=RunPaths(context.paths.root / "reloaded"))
    worker.save_checkpoint()
    worker.close()


def rank_main(rank: int, world: int, store: str, bad: str, config_file: str, sets: list[str]) -> None:
    """One rank."""
    config = load_config(Path(config_file), sets)
    cuda = config.parallel.device == "cuda"
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank if cuda else 0)}
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=FileStore(store, world), rank=rank, world_size=world)
    dataset = prepare(config.data, Path(config.run.storage or "")).folder
    context = WorkerContext(config, RunPaths.of(config), dataset, device, "ranks")
    if bad == "reload":
        reload(context)
    else:
        spoilt({int(step) for step in bad.split(",") if step})
        run(context, lambda _: None)
    dist.barrier()
    # gloo's threads let go of Python objects late; one that does so in a finalising interpreter aborts the process
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    """Start the ranks and wait for them."""
    config_file, world, bad, *sets = sys.argv[1:]
    config = load_config(Path(config_file), sets)
    paths = RunPaths.of(config)
    paths.root.mkdir(parents=True, exist_ok=True)
    checkpoint.begin_attempt(paths.attempt, "ranks")
    prepare(config.data, Path(config.run.storage or ""))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.integration.ranks", config_file, world, bad, *sets]
        ranks = [
            subprocess.Popen(
                command, env={**os.environ, "DUALVIEW_TEST_RANK": str(rank), "DUALVIEW_TEST_STORE": folder}
            )
            for rank in range(int(world))
        ]
        return max(process.wait(timeout=240) for process in ranks)


if __name__ == "__main__":
    if "DUALVIEW_TEST_RANK" not in os.environ:
        sys.exit(main())
    file, size, steps, *changes = sys.argv[1:]
    meeting = os.environ["DUALVIEW_TEST_STORE"] + "/store"
    rank_main(int(os.environ["DUALVIEW_TEST_RANK"]), int(size), meeting, steps, file, changes)
