"""An evaluation falls apart into blocks, each kept in a file as soon as it is finished.

A block is always the same images in the same batches, whoever computes it, so results do not depend on the number of
evaluation workers; what is finished when an evaluation is killed need not be done again. Files hold safetensors.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.config import EvaluationConfig

SIZES = {"samples": 128, "vlb": 32, "continuous_vlb": 32, "nll": 32}
Kind = Literal["samples", "vlb", "continuous_vlb", "nll"]


@dataclass(frozen=True)
class Block:
    """Numbered samples of a seed, or numbered held-out images that are scored."""

    kind: Kind
    seed: int
    first: int
    count: int

    @property
    def items(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)

    def file(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / f"{self.kind}-{self.seed}-{self.first:08d}.safetensors"

    def save(self, folder: Path, found: dict[str, Tensor]) -> None:
        """Keep what was found; readers see all of it or none."""
        file = self.file(folder)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        save_file(found, temporary)
        os.replace(temporary, file)

    def load(self, folder: Path) -> dict[str, Tensor] | None:
        """What was found; None where it is not there, spoilt, or of fewer items."""
        try:
            found = load_file(self.file(folder))
        except (FileNotFoundError, SafetensorError):
            return None
        return found if all(len(values) == self.count for values in found.values()) else None


def blocks_of(config: EvaluationConfig, heldout: int) -> list[Block]:
    """All blocks of an evaluation, the dearest kinds first so that workers end together."""
    seeds = range(config.seed, config.seed + config.seeds)
    sets: dict[Kind, list[tuple[int, int]]] = {
        "nll": [(config.seed, heldout)],
        "samples": [(seed, config.samples) for seed in seeds],
        "continuous_vlb": [(config.seed, heldout)],
        "vlb": [(config.seed, heldout)],
    }
    return [
        Block(kind, seed, first, min(SIZES[kind], total - first))
        for kind, those in sets.items()
        if ("frechet" if kind == "samples" else kind) in config.metrics
        for seed, total in those
        for first in range(0, total, SIZES[kind])
    ]
