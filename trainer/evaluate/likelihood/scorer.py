"""The three likelihoods of held-out images, block by block; all draws are keyed by (seed, image).

The two bounds are estimated where their terms are large, as a pilot on a few training images finds them.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.images import to_model_range
from diffusion.likelihood.bound import Vlb
from diffusion.likelihood.continuous import diffusion_rate, estimate_continuous_vlb
from diffusion.likelihood.discrete import ReverseKernel, estimate_vlb
from diffusion.likelihood.ode import dequantised_nll
from diffusion.likelihood.proposal import StepProposal, TimeProposal, even_log_snr, pilot_steps, spread_uniforms
from diffusion.likelihood.quantization import dequantise
from diffusion.rng import Stream, counter_generator, counter_normal, counter_uniform
from trainer.config.evaluation import EvaluationConfig
from trainer.data.dataset import Dataset
from trainer.evaluate.likelihood import denoising_curve as curve

PILOT_IMAGES, PILOT_STEPS = 16, 48
LARGEST_LOG_SNR = 30.0


class Likelihoods:
    """Scores held-out images; with classes, each given its own."""

    def __init__(self, denoiser: Denoiser, config: EvaluationConfig, data: Dataset) -> None:
        """Score with this model; `config` says how exactly."""
        self.denoiser, self.config, self.data = denoiser, config, data
        self.shape = data.info.image_shape
        self.kernel = ReverseKernel(denoiser)

    def vlb(self, block: Sequence[int]) -> Vlb:
        """The discrete bound's terms, each image's at `vlb_draws` steps drawn by the proposal."""
        steps, weights = self.step_proposal.draw(self._uniforms(block))
        x_0, label = self._images("heldout", block)
        return estimate_vlb(self.kernel, x_0, steps, self._noise(block), weights=weights, label=label)

    def continuous_vlb(self, block: Sequence[int]) -> Vlb:
        """The continuous bound's terms, likewise at `vlb_draws` times."""
        t, weights = self.time_proposal.draw(self._uniforms(block))
        x_0, label = self._images("heldout", block)
        return estimate_continuous_vlb(self.denoiser, x_0, t, self._noise(block), weights, label)

    def nll(self, block: Sequence[int]) -> tuple[Tensor, Tensor]:
        """-log p of the dequantised images by the probability-flow ODE, nats, and each one's network evaluations."""
        x_0, label = self._images("heldout", block)
        keys = [(image, 0) for image in block]
        u = counter_uniform(self.config.seed, Stream.LIKELIHOOD_DEQUANTISATION, keys, self.shape)
        signs = counter_uniform(self.config.seed, Stream.LIKELIHOOD_PROBE, keys, self.shape)
        probe, rtol = torch.where(signs < 0.5, -1.0, 1.0), self.config.nll_rtol
        return dequantised_nll(self.denoiser, dequantise(x_0, u).float(), probe, label=label, rtol=rtol, atol=rtol / 10)

    def denoising(self, block: Sequence[int]) -> dict[str, Tensor]:
        """The images' denoising errors at their points of the curve (denoising_curve.py)."""
        x_0, label = self._images("heldout", block)
        keys = [(image, draw) for image in block for draw in range(curve.DRAWS)]
        eps = counter_normal(self.config.seed, Stream.DENOISING_NOISE, keys, self.shape)
        eps = eps.unflatten(0, (len(block), curve.DRAWS))
        return curve.score_denoising(self.denoiser, x_0, curve.points_of(block), eps, label)

    @cached_property
    def step_proposal(self) -> StepProposal:
        """How often each step is evaluated: measured on a few training images, the same in every block."""
        steps = pilot_steps(self.denoiser.process, PILOT_STEPS)
        x_0, label, eps = self._pilot(len(steps))
        steps = steps.repeat(len(x_0) // len(steps))
        return StepProposal.from_pilot(self.denoiser.process, steps, self.kernel.diffusion_kl(x_0, steps, eps, label))

    @cached_property
    def time_proposal(self) -> TimeProposal:
        """How often each time is evaluated, likewise."""
        process = self.denoiser.process
        log_snr = even_log_snr(process, PILOT_STEPS, LARGEST_LOG_SNR)
        x_0, label, eps = self._pilot(len(log_snr))
        log_snr = log_snr.repeat(len(x_0) // len(log_snr))
        t = process.time(log_snr)
        errors = diffusion_rate(self.denoiser, x_0, t, eps, label) / -process.dlogsnr_dt(t)
        return TimeProposal.from_pilot(process, log_snr, errors)

    def _pilot(self, points: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """A few training images, spread over the set whose order may be that of classes, each at so many points."""
        total = self.data.info.train
        count = min(PILOT_IMAGES, total)
        x_0, label = self._images("train", np.arange(count) * total // count)
        label = None if label is None else label.repeat_interleave(points)
        keys = [(image, 0) for image in range(count * points)]
        eps = counter_normal(self.config.seed, Stream.PILOT_NOISE, keys, self.shape)
        return x_0.repeat_interleave(points, dim=0), label, eps

    @cached_property
    def _all_uniforms(self) -> NDArray[np.float64]:
        """What every held-out image's steps and times are drawn from, spread over the whole set."""
        generator = counter_generator(self.config.seed, Stream.LIKELIHOOD_TIMESTEPS)
        return spread_uniforms(generator, self.data.info.heldout, self.config.vlb_draws)

    def _uniforms(self, block: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._all_uniforms[np.asarray(block)])

    def _noise(self, block: Sequence[int]) -> Tensor:
        draws = all_draws(self.config.vlb_draws)
        keys = [(image, draw) for image in block for draw in range(draws)]
        eps = counter_normal(self.config.seed, Stream.LIKELIHOOD_NOISE, keys, self.shape)
        return eps.unflatten(0, (len(block), draws))

    def _images(self, split: str, rows: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Images and, for a model with classes, labels."""
        rows = np.asarray(rows)
        label = torch.from_numpy(self.data.labels(split)[rows]) if self.denoiser.has_labels else None
        return to_model_range(self.data.images(split)[rows]), label


def all_draws(vlb_draws: int) -> int:
    """An image's network evaluations for a bound: those of the diffusion term, and one in eight for reconstruction.

    At that rate both terms have about the same error.
    """
    return vlb_draws + max(1, vlb_draws // 8)
