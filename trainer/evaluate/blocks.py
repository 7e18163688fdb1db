"""The blocks into which an evaluation is divided, each stored in a safetensors file as soon as it is computed.

A block always has the same images in the same batches, so results do not depend on the number of evaluation workers,
and an evaluation that was killed resumes from the finished blocks.
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
IMAGES_PER_BLOCK: dict[Kind, int] = {"samples": 128, "vlb": 32, "continuous_vlb": 32, "nll": 32, "denoising": 32}
# the most expensive first, so that workers finish at about the same time
LIKELIHOODS: tuple[Kind, ...] = ("nll", "continuous_vlb", "vlb", "denoising")


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a seed, or consecutive held-out images, by their numbers.

    Attributes:
        kind: what is computed: samples, or which likelihood of held-out images.
        seed: seed of the samples, or of the random draws.
        first: number of the first sample or image.
        count: number of samples or images.
        nfe: for samples: network evaluations per sample; 0 for the solver as configured.
        extractor: for samples: name and digest of the extractor whose features these are; empty for pixels.
    """

    kind: Kind
    seed: int
    first: int
    count: int
    nfe: int = 0
    extractor: str = ""

    @property
    def items(self) -> range:
        """Numbers of the samples or images."""
        return range(self.first, self.first + self.count)

    @property
    def pixels(self) -> "Block":
        """The block of samples from which a block of features is computed."""
        return replace(self, extractor="")

    def file(self, folder: Path) -> Path:
        """Path of its file."""
        stem = "-".join([self.kind, *([f"nfe{self.nfe}"] if self.nfe else []), *filter(None, [self.extractor])])
        return folder / f"{stem}-{self.seed}-{self.first:08d}.safetensors"

    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Write the tensors of the block, [count, ...] each, atomically."""
        with durable.replacing(self.file(folder)) as temporary:
            save_file(tensors, temporary)

    def load(self, folder: Path) -> dict[str, Tensor] | None:
        """The tensors of the block; None if its file is missing, corrupt, or has another number of items."""
        try:
            tensors = load_file(self.file(folder))
        except (FileNotFoundError, SafetensorError):
            return None
        return tensors if all(len(values) == self.count for values in tensors.values()) else None


def blocks_of(config: EvaluationConfig, heldout: int) -> list[Block]:
    """All blocks of an evaluation except those of features; `heldout` is the number of held-out images."""
    likelihoods = [
        Block(kind, config.seed, first, min(IMAGES_PER_BLOCK[kind], heldout - first))
        for kind in LIKELIHOODS
        if kind in config.metrics
        for first in range(0, heldout, IMAGES_PER_BLOCK[kind])
    ]
    return likelihoods + [block for each in sample_sets(config) for block in each.blocks(config.samples)]


@dataclass(frozen=True)
class SampleSet:
    """The samples of a seed at a number of network evaluations per sample; 0 for the solver as configured."""

    seed: int
    nfe: int = 0

    def blocks(self, samples: int, extractor: str = "") -> Iterator[Block]:
        """The blocks of the first `samples` samples, or of their features by an extractor."""
        size = IMAGES_PER_BLOCK["samples"]
        for first in range(0, samples, size):
            yield Block("samples", self.seed, first, min(size, samples - first), self.nfe, extractor)


def sample_sets(config: EvaluationConfig) -> list[SampleSet]:
    """All sample sets: one for each seed, and one of the first seed at each number of evaluations of `nfe_curve`."""
    if not config.samples_images:
        return []
    seeds = range(config.seed, config.seed + config.seeds)
    nfes = config.nfe_curve if "frechet" in config.metrics else ()
    curve = [SampleSet(config.seed, nfe) for nfe in nfes if nfe != evaluations(config.solver)]
    return [SampleSet(seed) for seed in seeds] + curve
