"""The manifest of a checkpoint, written last: a folder without one is not a checkpoint, an altered one is refused.

checkpoints/step-00000250/rank-00000.safetensors   "kind|parameter|offset"; kinds param, exp_avg, exp_avg_sq, ema_*
manifest.json            step, data and RNG position, config, shapes, SHA-256 of each file
"""

import errno
import hashlib
import re
from pathlib import Path
from typing import Any

from diffusion.config.errors import shown
from trainer.config.run_config import canonical
from trainer.files import is_mapping, read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 3


class CheckpointError(ValueError):
    """A checkpoint that is incomplete or was altered; the message names the file and the problem."""


class OtherVersionError(CheckpointError):
    """A checkpoint that another version of this code wrote; it is not damaged."""


def damage(error: OSError, path: Path) -> OSError | CheckpointError:
    """What an error of reading means: a file that is gone or a bad sector is damage, anything else may pass."""
    if isinstance(error, FileNotFoundError) or error.errno == errno.EIO:
        return CheckpointError(f"{path}: not readable: {error}")
    return error


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint written after `step` training steps."""
    return checkpoints / f"step-{step:08d}"


def with_digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with `sha256` set to the SHA-256 of its other fields."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(canonical(rest).encode()).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest in a checkpoint's folder.

    Raises:
        CheckpointError: not readable, written in another format version, altered, or moved from another step's folder.
        OSError: the storage does not answer, or forbids it, which says nothing about the checkpoint.
    """
    path = folder / MANIFEST
    try:
        manifest: object = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    except OSError as error:
        raise damage(error, path) from error
    if not is_mapping(manifest):
        raise CheckpointError(f"{path}: not a manifest")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        kind = OtherVersionError if isinstance(version, int) else CheckpointError
        raise kind(f"{path}: format version {shown(version)}; this code reads {FORMAT_VERSION}")
    if manifest != with_digest(manifest):
        raise CheckpointError(f"{path}: altered since it was written (its own SHA-256 differs)")
    step = manifest.get("step")
    if not isinstance(step, int) or step_folder(folder.parent, step).name != folder.name:
        raise CheckpointError(f"{path}: belongs to step {shown(step)}, not to this folder")
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether the manifest verifies and every file is there with its size; contents are not read."""
    try:
        files: dict[str, dict[str, Any]] = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (CheckpointError, OSError, KeyError, TypeError, AttributeError):
        return False


def newest_whole(checkpoints: Path) -> int:
    """The newest step whose checkpoint is whole, see `is_whole`; 0 if there is none."""
    whole = (step for step in reversed(complete_steps(checkpoints)) if is_whole(step_folder(checkpoints, step)))
    return next(whole, 0)


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps whose checkpoint has a manifest, in ascending order; nothing is verified."""
    names = [re.fullmatch(r"step-(\d{8})", path.parent.name) for path in checkpoints.glob(f"step-*/{MANIFEST}")]
    return sorted(int(name[1]) for name in names if name)
