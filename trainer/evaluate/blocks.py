"""An evaluation falls apart into blocks, each kept in a file as soon as it is finished.

A block is always the same images in the same batches, whoever computes it, so results do not depend on the number of
evaluation workers; what is finished when an evaluation is killed need not be done again. Files hold safetensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion import durable
from diffusion.config import evaluations
from trainer.config.evaluation import EvaluationConfig

Kind = Literal["samples", "vlb", "continuous_vlb", "nll", "denoising"]
SIZES: dict[Kind, int] = {"samples": 128, "vlb": 32, "continuous_vlb": 32, "nll": 32, "denoising": 32}
# the dearest first, so that workers end together
LIKELIHOODS: tuple[Kind, ...] = ("nll", "continuous_vlb", "vlb", "denoising")


@dataclass(frozen=True)
class Block:
    """Numbered samples of a seed, or numbered held-out images that are scored.

    Attributes:
        kind: of what.
        seed: of the samples, or of the draws.
        first: number of its first item.
        count: how many items.
        nfe: of samples: network evaluations per image, 0 for the solver as it is configured.
        extractor: of samples: whose features, by name and digest; empty for the pixels themselves.
    """

    kind: Kind
    seed: int
    first: int
    count: int
    nfe: int = 0
    extractor: str = ""

    @property
    def items(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)

    @property
    def pixels(self) -> "Block":
        """The samples that a block of features is of."""
        return replace(self, extractor="")

    def file(self, folder: Path) -> Path:
        """Where it is kept."""
        what = "-".join([self.kind, *([f"nfe{self.nfe}"] if self.nfe else []), *filter(None, [self.extractor])])
        return folder / f"{what}-{self.seed}-{self.first:08d}.safetensors"

    def save(self, folder: Path, found: dict[str, Tensor]) -> None:
        """Keep what was found; readers see all of it or none."""
        with durable.replacing(self.file(folder)) as temporary:
            save_file(found, temporary)

    def load(self, folder: Path) -> dict[str, Tensor] | None:
        """What was found; None where it is not there, spoilt, or of fewer items."""
        try:
            found = load_file(self.file(folder))
        except (FileNotFoundError, SafetensorError):
            return None
        return found if all(len(values) == self.count for values in found.values()) else None


def blocks_of(config: EvaluationConfig, heldout: int) -> list[Block]:
    """All blocks of an evaluation but those of features."""
    likelihoods = [
        Block(kind, config.seed, first, min(SIZES[kind], heldout - first))
        for kind in LIKELIHOODS
        if kind in config.metrics
        for first in range(0, heldout, SIZES[kind])
    ]
    return likelihoods + [block for each in sample_sets(config) for block in each.blocks(config.samples)]


@dataclass(frozen=True)
class SampleSet:
    """The samples of a seed at a number of network evaluations, 0 for the solver as it is configured."""

    seed: int
    nfe: int = 0

    def blocks(self, samples: int, extractor: str = "") -> Iterator[Block]:
        """Their blocks, or those of their features."""
        size = SIZES["samples"]
        for first in range(0, samples, size):
            yield Block("samples", self.seed, first, min(size, samples - first), self.nfe, extractor)


def sample_sets(config: EvaluationConfig) -> list[SampleSet]:
    """All sets of samples: one a seed, and for the curve, one of the first seed at each number of evaluations."""
    if not config.samples_images:
        return []
    seeds = range(config.seed, config.seed + config.seeds)
    nfes = config.nfe_curve if "frechet" in config.metrics else ()
    curve = [SampleSet(config.seed, nfe) for nfe in nfes if nfe != evaluations(config.solver)]
    return [SampleSet(seed) for seed in seeds] + curve
