"""Reading checkpoints: find the newest good one, and read any slice of any parameter.

Each fragment names the parameter and the elements it holds, so a checkpoint can be read with any number of ranks and
at any ZeRO stage. Nothing is ever unpickled.
"""
# safetensors has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffusion.package import file_sha256
from trainer.run.manifest import CheckpointError, complete_steps, damage, read_manifest, step_folder


def best_step(checkpoints: Path, steps: Sequence[int]) -> int | None:
    """Of these steps, the one with the lowest mean training loss since the checkpoint before; None if none has one."""
    losses: dict[int, float] = {}
    for step in steps:
        try:
            loss = read_manifest(step_folder(checkpoints, step)).get("loss")
        except CheckpointError:
            continue
        if loss is not None:
            losses[step] = loss
    return min(losses, key=lambda step: losses[step], default=None)


@dataclass(frozen=True)
class LatestCheckpoint:
    """The newest checkpoint that verifies.

    Attributes:
        folder: its folder; None if no checkpoint verifies.
        refused: folder of each newer checkpoint that failed to verify -> the reason.
    """

    folder: Path | None
    refused: dict[Path, CheckpointError]

    @property
    def step(self) -> int:
        """Its training step; 0 if there is none."""
        return Checkpoint(self.folder).step if self.folder else 0


def find_latest(checkpoints: Path) -> LatestCheckpoint:
    """Find the newest checkpoint that verifies, trying older ones in turn."""
    refused = dict[Path, CheckpointError]()
    for step in reversed(complete_steps(checkpoints)):
        folder = step_folder(checkpoints, step)
        try:
            Checkpoint(folder).verify()
        except CheckpointError as error:
            refused[folder] = error
            continue
        return LatestCheckpoint(folder, refused)
    return LatestCheckpoint(None, refused)


class Checkpoint:
    """A complete checkpoint, opened for reading.

    Attributes:
        step: training steps taken, skipped ones included.
        optimizer_steps: steps that changed the weights: `step` less the skipped ones.
        shapes: parameter name -> full shape.
        image_shape: (C, H, W).
        loss_moments: statistics of the loss for importance sampling of t; empty where t is not sampled that way.
        dataset_fingerprint: of the data that was trained on; None in checkpoints from before 2026-11-28.
    """

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            CheckpointError: it is missing, altered, or written in another format version.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.step: int = self.manifest["step"]
        self.optimizer_steps: int = self.step - self.manifest["skipped"]
        self.shapes = {name: tuple(shape) for name, shape in self.manifest["shapes"].items()}
        channels, height, width = self.manifest["image_shape"]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.loss_moments: dict[str, list[float]] = self.manifest.get("loss_moments") or {}
        self.dataset_fingerprint: str | None = self.manifest.get("data", {}).get("fingerprint")
        self._files: dict[Path, Any] = {}
        self._index: dict[tuple[str, str], list[tuple[int, str, Path]]] | None = None

    def verify(self) -> None:
        """Check the SHA-256 of every file.

        Raises:
            CheckpointError: a file is missing or altered; names the first one.
            OSError: the storage does not answer, or forbids it.
        """
        for name, expected in self.manifest["files"].items():
            path = self.folder / name
            try:
                digest = file_sha256(path)
            except OSError as error:
                raise damage(error, path) from error
            if digest != expected["sha256"]:
                raise CheckpointError(f"{path}: altered since it was written (SHA-256 differs from the manifest)")

    def check_dataset(self, fingerprint: str) -> None:
        """Refuse to go on with other data.

        Raises:
            CheckpointError: the weights were trained on data of another fingerprint.
        """
        if self.dataset_fingerprint not in (None, fingerprint):
            raise CheckpointError(
                f"{self.folder}: trained on other data ({self.dataset_fingerprint[:16]}, these are {fingerprint[:16]})"
            )

    def read(self, kind: str, name: str, offset: int, numel: int) -> Tensor:
        """Elements [offset, offset + numel) of a flattened parameter, from whichever shards hold them.

        Args:
            kind: which tensor of the parameter: param, exp_avg, exp_avg_sq, ema_0 or ema_1.
            name: the parameter's name.
            offset: first element.
            numel: number of elements.

        Returns:
            float32 [numel].

        Raises:
            CheckpointError: some of the elements are in no shard.
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
        """One parameter's tensor of a kind, float32, in the parameter's full shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, torch.Size(shape).numel()).reshape(shape)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Every parameter's tensor of a kind, by parameter name."""
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
        """A shard file, opened once and kept; its header lists its fragments."""
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path]
