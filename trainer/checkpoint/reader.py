"""Reading checkpoints: which is the newest good one, and any slice of any parameter in it.

Fragments say which elements of which parameter they are, so a checkpoint is read at any number of ranks and any ZeRO
stage. Nothing is ever unpickled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffusion.package import file_sha256
from trainer.checkpoint.manifest import CheckpointError, complete_steps, read_manifest, step_folder


def best_step(checkpoints: Path) -> int | None:
    """The step of the lowest mean training loss since the checkpoint before; one that cannot be read is none."""
    losses: dict[int, float] = {}
    for step in complete_steps(checkpoints):
        try:
            loss = read_manifest(step_folder(checkpoints, step)).get("loss")
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
        self.manifest = read_manifest(folder)
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
