"""Writing a checkpoint: every rank its fragments, rank 0 the manifest once all of them are there. Collective."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from diffusion import durable
from diffusion.package import file_sha256
from trainer.checkpoint.manifest import FORMAT_VERSION, MANIFEST, complete_steps, sealed, step_folder
from trainer.checkpoint.reader import best_step
from trainer.config.run_config import RunConfig
from trainer.run.attempt import Fence, SupersededError


def facts(
    config: RunConfig,
    shapes: dict[str, tuple[int, ...]],
    image_shape: tuple[int, int, int],
    step: int,
    skipped: int = 0,
    loss: float | None = None,
) -> dict[str, Any]:
    """What a manifest states that needs no tensor; draws are keyed by (seed, step), so RNG and data are numbers.

    Args:
        config: of the run.
        shapes: of all parameters.
        image_shape: (C, H, W).
        step: batches used.
        skipped: of these, how many moved no weight.
        loss: the mean over the steps since the checkpoint before, which tells the best one; None where there is none.
    """
    return {
        "step": step,
        "skipped": skipped,
        "loss": loss,
        "data": {"images_seen": step * config.training.global_batch_size},
        "rng": {"kind": "keyed", "seed": config.seed, "next_step": step + 1},
        "zero_stage": config.parallel.zero_stage,
        "method_sha256": config.method_sha256,
        "config": config.model_dump(mode="json"),
        "shapes": shapes,
        "image_shape": image_shape,
    }


def save(
    checkpoints: Path,
    fragments: dict[str, Tensor],
    stated: dict[str, Any],
    fence: Fence,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint; collective, returns once it is complete.

    Args:
        checkpoints: the folder that gets one folder a step.
        fragments: this rank's, from `fragments_of`.
        stated: for the manifest, from `facts`; all that rank 0 says.
        fence: of this attempt.
        group: whose ranks write.

    Raises:
        SupersededError: on every rank, when the fence is down; nothing is written.
    """
    folder, rank = step_folder(checkpoints, stated["step"]), dist.get_rank()
    _pass_or_stop(fence, group)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier(group=group)
    name = f"rank-{rank:05d}.safetensors"
    save_file(fragments, folder / name)
    durable.sync(folder / name)
    entries: list[Any] = [None] * dist.get_world_size()
    entry = {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    dist.all_gather_object(entries, (name, entry), group=group)
    if rank == 0:
        if not fence.holds():
            raise SupersededError(f"attempt {fence.attempt} was superseded while it wrote {folder}")
        whole = {**stated, "format_version": FORMAT_VERSION, "world_size": len(entries), "files": dict(entries)}
        _write_json(folder / MANIFEST, sealed(whole))
        durable.sync(checkpoints)
    dist.barrier(group=group)
    return folder


def _pass_or_stop(fence: Fence, group: dist.ProcessGroup | None) -> None:
    """Rank 0 looks at the fence, all ranks act alike."""
    holds = [dist.get_rank() != 0 or fence.holds()]
    dist.broadcast_object_list(holds, src=0, group=group)
    if not holds[0]:
        raise SupersededError(f"attempt {fence.attempt} was superseded by {fence.file.read_text()}")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    durable.write_text(path, json.dumps(values, sort_keys=True) + "\n")


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints and the best one, each manifest first."""
    steps = complete_steps(checkpoints)
    best = best_step(checkpoints)
    for step in steps[:-keep]:
        if step == best:
            continue
        folder = step_folder(checkpoints, step)
        (folder / MANIFEST).unlink()
        shutil.rmtree(folder, ignore_errors=True)
