"""The parts of an evaluation that are worth spreading: blocks of samples and blocks of likelihoods.

A block is always the same images in the same batches, whoever computes it, so results do not depend on the number of
evaluation workers. All draws are keyed by (seed, image).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
from diffusion.proposal import StepProposal, pilot_steps, spread_uniforms
from diffusion.solvers import ImageNoise, autoguided, solve
from trainer.config import EvaluationConfig
from trainer.data.dataset import Dataset

SAMPLE_BLOCK = 128
LIKELIHOOD_BLOCK = 32
PILOT_IMAGES, PILOT_STEPS = 16, 48


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
    evaluator = BlockEvaluator(package, config, data)
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

    A model with classes is given labels: samples have the classes of the training images, as often (`spread_labels`);
    the bound of a held-out image is that given its own.
    """

    def __init__(self, package: Path, config: EvaluationConfig, data: Dataset) -> None:
        """Verify and load the package."""
        self.denoiser, self.package = load_package(package)
        self.config = config
        self.data = data
        self.kernel = ReverseKernel(self.denoiser)

    def samples(self, block: Sequence[int]) -> NDArray[np.uint8]:
        """The samples with these numbers, quantised to 8 bits, [n, H, W, C]."""
        noise = ImageNoise(self.config.seed, block, self.package.image_shape)
        denoiser, guidance = self.guided
        label = None
        if self.package.network.classes:
            label = torch.from_numpy(spread_labels(self.data.labels("train"), block))
        return to_pixels(solve(denoiser, noise, self.config.solver, label, guidance))

    @cached_property
    def guided(self) -> tuple[Denoiser, ClassifierFree | None]:
        """The denoiser, autoguided where the configuration says so, and its classifier-free guidance."""
        guidance = self.config.guidance
        if isinstance(guidance, Autoguidance):
            return autoguided(self.denoiser, load_package(Path(guidance.guide))[0], guidance.scale), None
        return self.denoiser, guidance

    def _labels(self, split: str, images: Sequence[int] | NDArray[np.int64]) -> Tensor | None:
        if not self.package.network.classes:
            return None
        return torch.from_numpy(self.data.labels(split)[np.asarray(images)])

    @cached_property
    def proposal(self) -> StepProposal:
        """How often each step is evaluated: measured on a few training images, the same in every shard."""
        process, total = self.denoiser.process, self.data.info.train
        count = min(PILOT_IMAGES, total)
        picked = np.arange(count) * total // count  # over the whole set, whose order may be that of classes
        steps = pilot_steps(process, PILOT_STEPS)
        images = to_model_range(self.data.images("train")[picked]).repeat_interleave(len(steps), dim=0)
        labels = self._labels("train", picked)
        repeated = None if labels is None else labels.repeat_interleave(len(steps))
        keys = [(image, 0) for image in range(len(images))]
        eps = keyed_normal(self.config.seed, Stream.PILOT_NOISE, keys, self.package.image_shape)
        steps = steps.repeat(count)
        return StepProposal.from_pilot(process, steps, self.kernel.diffusion_kl(images, steps, eps, repeated))

    @cached_property
    def uniforms(self) -> NDArray[np.float64]:
        """What every held-out image's steps are drawn from, spread over the whole set."""
        generator = keyed_generator(self.config.seed, Stream.LIKELIHOOD_TIMESTEPS)
        return spread_uniforms(generator, self.data.info.heldout, self.config.vlb_draws)

    def vlb(self, pixels: NDArray[np.uint8], block: Sequence[int]) -> Vlb:
        """The bound's terms for these held-out images, each at `vlb_draws` steps drawn by the proposal."""
        draws = all_draws(self.config.vlb_draws)
        keys = [(image, draw) for image in block for draw in range(draws)]
        eps = keyed_normal(self.config.seed, Stream.LIKELIHOOD_NOISE, keys, self.package.image_shape)
        eps = eps.unflatten(0, (len(block), draws))
        steps, weights = self.proposal.draw(torch.from_numpy(self.uniforms[np.asarray(block)]))
        label = self._labels("heldout", block)
        return estimate_vlb(self.kernel, to_model_range(pixels), steps, eps, weights=weights, label=label)


def spread_labels(labels: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.int64]:
    """The labels of the samples with these numbers: among any run of numbers, classes are as frequent as in `labels`.

    Sample i has the label at i / golden ratio (mod 1) of the sorted labels, a sequence whose discrepancy falls as
    log(n) / n; the order that the data happen to be in does not matter.
    """
    places = np.asarray(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    return np.sort(labels)[(places * np.uint64(len(labels)) >> np.uint64(32)).astype(np.int64)]


def all_draws(vlb_draws: int) -> int:
    """An image's network evaluations for the bound: those of the diffusion term, and one in eight for reconstruction.

    At that rate both terms have about the same error.
    """
    return vlb_draws + max(1, vlb_draws // 8)
