"""The parts of an evaluation that are worth spreading: blocks of samples and blocks of likelihoods.

A block is always the same images in the same batches, whoever computes it, so results do not depend on the number of
evaluation workers. All draws are keyed by (seed, image).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.config import Autoguidance, ClassifierFree
from diffusion.denoiser import Denoiser
from diffusion.images import to_model_range, to_pixels
from diffusion.keyed import Stream, keyed_generator, keyed_normal
from diffusion.likelihood import ReverseKernel, Vlb, estimate_vlb
from diffusion.package import load_package
from diffusion.solvers import ImageNoise, autoguided, solve
from trainer.config import EvaluationConfig
from trainer.data.dataset import SPLITS, Dataset

SAMPLE_BLOCK = 128
LIKELIHOOD_BLOCK = 8


@dataclass(frozen=True)
class Shard:
    """One evaluation worker's share of numbered items: every `of`-th block, from block `index` on."""

    index: int
    of: int

    def blocks(self, total: int, size: int) -> list[range]:
        """This share's ranges of `total` items cut into blocks of `size`."""
        return [range(first, min(first + size, total)) for first in range(self.index * size, total, self.of * size)]


@dataclass(frozen=True)
class ShardResult:
    """What one share found, keyed by block.

    Attributes:
        samples: uint8 [n, H, W, C] per block of samples.
        vlb: float64 nats per block of held-out images.
    """

    samples: dict[range, NDArray[np.uint8]]
    vlb: dict[range, Vlb]


def evaluate_shard(package: Path, data: Dataset, config: EvaluationConfig, shard: Shard) -> ShardResult:
    """Sample and score one share in this process, from the package and the data alone."""
    heldout = data.images("heldout")
    evaluator = BlockEvaluator(package, config, {split: data.labels(split) for split in SPLITS})
    with torch.inference_mode():
        return ShardResult(
            samples={block: evaluator.samples(block) for block in shard.blocks(config.samples, SAMPLE_BLOCK)},
            vlb={
                block: evaluator.vlb(heldout[block.start : block.stop], block)
                for block in shard.blocks(len(heldout), LIKELIHOOD_BLOCK)
            },
        )


class BlockEvaluator:
    """Computes blocks with one loaded package.

    A model with classes is given labels: sample i has that of training image i, so that samples have the classes of the
    data, and the bound of a held-out image is that given its own.
    """

    def __init__(self, package: Path, config: EvaluationConfig, labels: Mapping[str, NDArray[np.int64]]) -> None:
        """Verify and load the package; `labels` are those of the splits."""
        self.denoiser, self.package = load_package(package)
        self.config = config
        self.labels = labels
        self.kernel = ReverseKernel(self.denoiser)

    def samples(self, block: Sequence[int]) -> NDArray[np.uint8]:
        """The samples with these numbers, quantised to 8 bits, [n, H, W, C]."""
        noise = ImageNoise(self.config.seed, block, self.package.image_shape)
        denoiser, guidance = self._guided()
        label = self._labels("train", block)
        return to_pixels(solve(denoiser, noise, self.config.solver, label, guidance))

    def _guided(self) -> tuple[Denoiser, ClassifierFree | None]:
        """The denoiser, autoguided where the configuration says so, and its classifier-free guidance."""
        guidance = self.config.guidance
        if isinstance(guidance, Autoguidance):
            return autoguided(self.denoiser, load_package(Path(guidance.guide))[0], guidance.scale), None
        return self.denoiser, guidance

    def _labels(self, split: str, block: Sequence[int]) -> Tensor | None:
        if not self.package.network.classes:
            return None
        labels = self.labels[split]
        return torch.from_numpy(labels[np.asarray(block) % len(labels)])

    def vlb(self, pixels: NDArray[np.uint8], block: Sequence[int]) -> Vlb:
        """The bound's terms for these held-out images, each at `vlb_draws` steps stratified over 2..T."""
        draws, seed = self.config.vlb_draws, self.config.seed
        keys = [(image, draw) for image in block for draw in range(draws + 1)]
        eps = keyed_normal(seed, Stream.LIKELIHOOD_NOISE, keys, self.package.image_shape)
        u = np.stack([keyed_generator(seed, Stream.LIKELIHOOD_TIMESTEPS, image).random(draws) for image in block])
        steps = self.denoiser.process.num_steps - 1
        strata = np.floor((np.arange(draws) + u) / draws * steps).astype(np.int64)
        t = torch.from_numpy(2 + np.minimum(strata, steps - 1))
        eps = eps.unflatten(0, (len(block), draws + 1))
        return estimate_vlb(self.kernel, to_model_range(pixels), t, eps, label=self._labels("heldout", block))
