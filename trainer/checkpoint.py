"""Sharded checkpoints of named fragments: written by every rank, complete only once the manifest is there.

    checkpoints/step-00000250/rank-00000.safetensors   "kind|parameter|offset"; kinds param, exp_avg, exp_avg_sq, ema_*
                              manifest.json            step, data and RNG position, config, shapes, SHA-256 of each file

Fragments say which elements of which parameter they are, so a checkpoint is read at any number of ranks and any ZeRO
stage. Nothing is ever unpickled. Training goes on while trainer/checkpoint_writer.py saves.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.package import file_sha256
from trainer.config import RunConfig, canonical
from trainer.zero import Fragment, Masters

MANIFEST = "manifest.json"
FORMAT_VERSION = 3


class CheckpointError(ValueError):
    """A checkpoint that is not whole or not unaltered; the message names the file and what is wrong."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return checkpoints / f"step-{step:08d}"


@dataclass(frozen=True)
class Fence:
    """Which attempt a group of workers belongs to, and the file that names the one in charge."""

    file: Path
    attempt: str

    def holds(self) -> bool:
        """Whether this attempt is still in charge."""
        return self.file.read_text() == self.attempt


class SupersededError(RuntimeError):
    """Another attempt at the run has begun; this one, left over from a driver that is gone, must write nothing more."""


def begin_attempt(attempt_file: Path, attempt: str) -> None:
    """Make `attempt` the only one that may write checkpoints."""
    temporary = attempt_file.with_suffix(".tmp")
    temporary.write_text(attempt)
    os.replace(temporary, attempt_file)


def fragments_of(fragments: list[Fragment], aligned: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Copies in memory of this rank's fragments, by "kind|parameter|offset".

    Args:
        fragments: of the masters.
        aligned: kind -> tensors aligned with `Masters.flats`.
    """
    return {
        f"{kind}|{fragment.name}|{fragment.offset}": fragment.of(flats).detach().to("cpu", copy=True)
        for kind, flats in aligned.items()
        for fragment in fragments
    }


def facts(
    config: RunConfig,
    masters: Masters,
    image_shape: tuple[int, int, int],
    step: int,
    skipped: int = 0,
    loss: float | None = None,
) -> dict[str, Any]:
    """What a manifest states that needs no tensor; draws are keyed by (seed, step), so RNG and data are numbers.

    Args:
        config: of the run.
        masters: for the shapes of parameters.
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
        "shapes": masters.shapes(),
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
    entries: list[Any] = [None] * dist.get_world_size()
    entry = {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    dist.all_gather_object(entries, (name, entry), group=group)
    if rank == 0:
        if not fence.holds():
            raise SupersededError(f"attempt {fence.attempt} was superseded while it wrote {folder}")
        whole = {**stated, "format_version": FORMAT_VERSION, "world_size": len(entries), "files": dict(entries)}
        _write_json(folder / MANIFEST, sealed(whole))
    dist.barrier(group=group)
    return folder


def _pass_or_stop(fence: Fence, group: dist.ProcessGroup | None) -> None:
    """Rank 0 looks at the fence, all ranks act alike."""
    holds = [dist.get_rank() != 0 or fence.holds()]
    dist.broadcast_object_list(holds, src=0, group=group)
    if not holds[0]:
        raise SupersededError(f"attempt {fence.attempt} was superseded by {fence.file.read_text()}")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, sort_keys=True) + "\n")
    os.replace(temporary, path)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the digest of all else in it as `sha256`, whatever stood there."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(canonical(rest).encode()).hexdigest()}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, once it is what was written.

    Raises:
        CheckpointError: not readable, of another format version, altered, or of another folder.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: not a manifest")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version}; this code reads {FORMAT_VERSION}")
    if manifest != sealed(manifest):
        raise CheckpointError(f"{path}: altered since it was written (its own SHA-256 differs)")
    if step_folder(folder.parent, manifest["step"]).name != folder.name:
        raise CheckpointError(f"{path}: is that of step {manifest['step']}")
    return manifest


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


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps that have a manifest, oldest first; nothing is verified."""
    names = [re.fullmatch(r"step-(\d{8})", path.parent.name) for path in checkpoints.glob(f"step-*/{MANIFEST}")]
    return sorted(int(name[1]) for name in names if name)


def best_step(checkpoints: Path) -> int | None:
    """The step of the lowest mean training loss since the checkpoint before; one that cannot be read is none."""
    losses: dict[int, float] = {}
    for step in complete_steps(checkpoints):
        try:
            loss = _read_manifest(step_folder(checkpoints, step)).get("loss")
        except CheckpointError:
            continue
        if loss is not None:
            losses[step] = loss
    return min(losses, key=lambda step: losses[step], default=None)


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, if any, and why newer ones were passed over."""

    folder: Path | None
    refused: list[str]


def find_latest(checkpoints: Path) -> Found:
    """The newest checkpoint that verifies."""
    refused = []
    for step in reversed(complete_steps(checkpoints)):
        folder = step_folder(checkpoints, step)
        try:
            Checkpoint(folder).verify()
        except CheckpointError as error:
            refused.append(str(error))
            continue
        return Found(folder, refused)
    return Found(None, refused)


class Checkpoint:
    """A complete checkpoint, for reading.

    Attributes:
        step: batches used.
        optimizer_steps: of these, how many moved the weights.
        shapes: full shape of every parameter.
        image_shape: (C, H, W).
        loss_moments: what importance sampling of t goes by; empty where t is drawn otherwise.
    """

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            CheckpointError: there is none, or it is of another format version.
        """
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.step: int = self.manifest["step"]
        self.optimizer_steps: int = self.step - self.manifest["skipped"]
        self.shapes = {name: tuple(shape) for name, shape in self.manifest["shapes"].items()}
        channels, height, width = self.manifest["image_shape"]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.loss_moments: dict[str, list[float]] = self.manifest.get("loss_moments") or {}
        self._files: dict[Path, Any] = {}
        self._index: dict[tuple[str, str], list[tuple[int, str, Path]]] | None = None

    def verify(self) -> None:
        """Check every file's SHA-256.

        Raises:
            CheckpointError: naming the first file that is missing or altered.
        """
        for name, expected in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(f"{path}: missing")
            if file_sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path}: altered since it was written (SHA-256 differs from the manifest)")

    def read(self, kind: str, name: str, offset: int, numel: int) -> Tensor:
        """Elements [offset, offset + numel) of a flattened parameter's `kind`, from whichever shards hold them.

        Raises:
            CheckpointError: some of the elements are nowhere.
        """
        result = torch.empty(numel, dtype=torch.float32)
        covered = torch.zeros(numel, dtype=torch.bool)
        for piece, key, path in self._pieces(kind, name):
            stored = self._open(path).get_slice(key)
            begin, end = max(offset, piece), min(offset + numel, piece + stored.get_shape()[0])
            if begin < end:
                result[begin - offset : end - offset] = stored[begin - piece : end - piece]
                covered[begin - offset : end - offset] = True
        if not covered.all():
            raise CheckpointError(f"{self.folder}: {kind} of {name}: {int(covered.sum())} of {numel} elements found")
        return result

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole parameter's `kind`, in its shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, torch.Size(shape).numel()).reshape(shape)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Every parameter's `kind`."""
        return {name: self.tensor(kind, name) for name in self.shapes}

    def _pieces(self, kind: str, name: str) -> list[tuple[int, str, Path]]:
        if self._index is None:
            self._index = {}
            for fragment_kind, fragment_name, piece in self._keys():
                self._index.setdefault((fragment_kind, fragment_name), []).append(piece)
        return self._index.get((kind, name), [])

    def _keys(self) -> Iterator[tuple[str, str, tuple[int, str, Path]]]:
        for file_name in self.manifest["files"]:
            path = self.folder / file_name
            for key in self._open(path).keys():  # noqa: SIM118 - safe_open is not a mapping
                kind, name, offset = key.split("|")
                yield kind, name, (int(offset), key, path)

    def _open(self, path: Path) -> Any:  # noqa: ANN401 - safe_open
        """A shard, opened once: its header names every fragment."""
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path]
