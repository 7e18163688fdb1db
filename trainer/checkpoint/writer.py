"""Writing a checkpoint, collective: each rank writes its fragments, then rank 0 writes the manifest."""
# torch.distributed and safetensors have few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from diffusion import durable
from trainer.checkpoint.reader import best_step
from trainer.checkpoint.shard import write_shard
from trainer.config.run_config import RunConfig
from trainer.run.attempt import Fence, SupersededError
from trainer.run.journal import Journal
from trainer.run.manifest import FORMAT_VERSION, MANIFEST, complete_steps, is_whole, step_folder, with_digest


def manifest_fields(
    config: RunConfig,
    shapes: dict[str, tuple[int, ...]],
    image_shape: tuple[int, int, int],
    step: int,
    skipped: int = 0,
    loss: float | None = None,
    dataset_fingerprint: str | None = None,
) -> dict[str, Any]:
    """The manifest's fields that do not depend on files.

    Random draws are keyed by (seed, step), so the state of the RNG and of the data order is a step number.

    Args:
        config: the run's configuration.
        shapes: parameter name -> full shape.
        image_shape: (C, H, W).
        step: training steps taken, skipped ones included.
        skipped: steps that did not change the weights.
        loss: mean training loss since the previous checkpoint, by which the best one is kept; None if there is none.
        dataset_fingerprint: of the data that the weights were trained on.
    """
    return {
        "step": step,
        "skipped": skipped,
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "data": {"images_seen": step * config.training.global_batch_size, "fingerprint": dataset_fingerprint},
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
    manifest: dict[str, Any],
    fence: Fence,
    group: dist.ProcessGroup | None = None,
    journal: Journal | None = None,
) -> Path:
    """Write a checkpoint; collective, returns once it is complete and on the disk of every rank.

    Shards reach the disk before the manifest does, so that a power cut leaves the checkpoint whole or not at all.

    Args:
        checkpoints: folder that holds one folder per step.
        fragments: this rank's fragments, from `fragments_of`.
        manifest: fields of the manifest, from `manifest_fields`; rank 0's are written.
        fence: tells whether this attempt is still in charge.
        group: process group of the ranks that write; None for all ranks.
        journal: on rank 0, the run's journal, whose records reach the disk before the manifest.

    Returns:
        The checkpoint's folder.

    Raises:
        SupersededError: on every rank, when a newer attempt is in charge; nothing is written.
    """
    folder, rank = step_folder(checkpoints, manifest["step"]), dist.get_rank()
    _require_in_charge(fence, group)
    if rank == 0:
        durable.make_folder(checkpoints)
        remove(folder)
        folder.mkdir()
    dist.barrier(group=group)
    name = f"rank-{rank:05d}.safetensors"
    entry = write_shard(folder / name, fragments)
    entries: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(entries, (name, entry), group=group)
    if rank == 0:
        if not fence.holds():
            raise SupersededError(f"attempt {fence.attempt} was superseded while it wrote {folder}")
        if journal:
            journal.sync()
        manifest = {**manifest, "format_version": FORMAT_VERSION, "world_size": len(entries), "files": dict(entries)}
        durable.sync(folder)
        durable.sync(checkpoints)
        _write_json(folder / MANIFEST, with_digest(manifest))
    dist.barrier(group=group)
    return folder


def remove(folder: Path) -> None:
    """Remove a checkpoint, if there is one; its manifest first, so that what a power cut leaves is none."""
    if not folder.exists():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    durable.sync(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _require_in_charge(fence: Fence, group: dist.ProcessGroup | None) -> None:
    """Rank 0 reads the fence and all ranks act on its answer."""
    holds = [dist.get_rank() != 0 or fence.holds()]
    dist.broadcast_object_list(holds, src=0, group=group)
    if not holds[0]:
        raise SupersededError(f"attempt {fence.attempt} was superseded by {fence.file.read_text()}")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    durable.write_text(path, json.dumps(values, sort_keys=True) + "\n")


def prune(checkpoints: Path, keep: int) -> None:
    """Remove the checkpoints before the newest `keep` that are whole, except the best one.

    Those that are not whole are left alone, and do not count towards `keep`.
    """
    steps = [step for step in complete_steps(checkpoints) if is_whole(step_folder(checkpoints, step))]
    best = best_step(checkpoints, steps)
    for step in steps[:-keep]:
        if step != best:
            remove(step_folder(checkpoints, step))
