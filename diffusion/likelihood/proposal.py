"""Importance sampling of the steps or times at which a bound's terms are evaluated, weighted by 1 / probability.

The sum over steps and the integral over time are estimated from few evaluations. For independent draws the variance is
least if the density is proportional to the root mean square of the summand (Nichol & Dhariwal 2021, section 3.3, for
training); here it is measured in a pilot run of a few evaluations. Draws are made by inverse transform from uniforms
that are spread over all images and draws of an evaluation, so they are stratified as well. The estimate is unbiased
whatever the proposal: it depends on the pilot only through the weights, so the pilot's images and noise must be
independent of those scored.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.process.sde import Process

Floats = NDArray[np.float64]
UNIFORM_FRACTION = 0.05  # of the proposal's density: no weight exceeds 20 times the uniform one
MAX_ABS_LOG_SNR = 30.0  # steps beyond this log-SNR get the same density


def spread_uniforms(generator: np.random.Generator, images: int, draws: int) -> Floats:
    """Stratified uniforms u for all images and draws of an evaluation.

    Each image has one u in each of `draws` equal parts of [0, 1), and within a part the images have one u each in
    `images` equal sub-parts, in random order; every u alone is uniform. They are drawn once for a whole evaluation, so
    that no image's u depends on how the evaluation is cut into blocks.

    Args:
        generator: at the evaluation's own counter.
        images: number of images.
        draws: number of draws per image.

    Returns:
        float64 [images, draws] in [0, 1).
    """
    order = np.stack([generator.permutation(images) for _ in range(draws)], axis=1)
    part = (order + generator.random((images, draws))) / images
    return np.minimum((np.arange(draws) + part) / draws, np.nextafter(1, 0))


def even_log_snr(process: Process, count: int, bound: float = math.inf) -> Tensor:
    """Evenly spaced log-SNRs, descending from that at t_min to that at t_max.

    Args:
        process: gives the two ends.
        count: number of log-SNRs.
        bound: clamp the two ends to [-bound, bound].

    Returns:
        float64 [count].
    """
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).clamp(-bound, bound)
    return torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64)


def pilot_steps(process: Process, count: int) -> Tensor:
    """At most `count` different steps in 2..T for a pilot run, nearly even in log-SNR; int64."""
    log_snr = _step_log_snr(process)
    at = torch.searchsorted(-log_snr, -even_log_snr(process, count, MAX_ABS_LOG_SNR)).clamp(max=len(log_snr) - 1)
    return torch.tensor(np.unique(at.numpy())) + 2


@dataclass(frozen=True)
class StepProposal:
    """The probability with which each step of a chain is drawn.

    Attributes:
        probabilities: of the steps 2..T, float64 [T - 1], all above 0 and of sum 1.

    Raises:
        ValueError: a probability that is not above 0, or a sum other than 1.
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        if not bool((self.probabilities > 0).all()) or abs(float(self.probabilities.sum()) - 1) > 1e-9:
            raise ValueError("probabilities: allowed: above 0 and of sum 1, so that every step can be drawn")

    @classmethod
    def uniform(cls, num_steps: int) -> Self:
        """The proposal with equal probabilities for the steps 2..T, T = `num_steps`."""
        return cls(torch.full((num_steps - 1,), 1 / (num_steps - 1), dtype=torch.float64))

    @classmethod
    def from_pilot(cls, process: Process, steps: Tensor, terms: Tensor) -> Self:
        """Probabilities proportional to the root mean square of L_{t-1}, with a uniform part of 5 %.

        Between the pilot's steps its logarithm is linear in log-SNR.

        Args:
            process: of T steps.
            steps: int64 [P] in 2..T, such as `pilot_steps` repeated for several images.
            terms: L_{t-1} at each, nats [P].

        Raises:
            ValueError: terms that are not finite, or none above 0.
        """
        log_snr = _step_log_snr(process)
        return cls(_defended(_root_mean_squares(log_snr[steps.cpu() - 2], terms, log_snr)))

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Steps in 2..T by inverse transform of u, and their weights.

        Args:
            u: uniform on [0, 1), float64 of any shape.

        Returns:
            Steps, int64, and weights 1 / probability, float64, both of the shape of u.
        """
        index, _ = _inverse(self.probabilities, u)
        return index + 2, 1 / self.probabilities[index]


@dataclass(frozen=True)
class TimeProposal:
    """The density with which each time of a process is drawn: constant in log-SNR on each of equal parts of its range.

    Attributes:
        process: the forward process.
        probabilities: of the parts, from t_min to t_max, float64 [parts].
    """

    process: Process
    probabilities: Tensor

    @classmethod
    def uniform(cls, process: Process) -> Self:
        """The proposal that is uniform in log-SNR."""
        return cls(process, torch.ones(1, dtype=torch.float64))

    @classmethod
    def from_pilot(cls, process: Process, log_snr: Tensor, errors: Tensor, parts: int = 256) -> Self:
        """Probabilities proportional to the root mean square of ||eps - eps_theta||^2, with a uniform part of 5 %.

        Between the pilot's points its logarithm is linear in log-SNR.

        Args:
            process: with a finite log-SNR range.
            log_snr: float64 [P], such as `even_log_snr` repeated for several images.
            errors: ||eps - eps_theta||^2 at each, [P].
            parts: number of parts of the log-SNR range.

        Raises:
            ValueError: errors that are not finite, or none above 0.
        """
        edges = even_log_snr(process, parts + 1)
        middle = (edges[1:] + edges[:-1]) / 2
        return cls(process, _defended(_root_mean_squares(log_snr, errors, middle)))

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times by inverse transform of u, and their weights.

        Args:
            u: uniform on [0, 1), float64 of any shape.

        Returns:
            Times, and weights 1 / density over t, both float64 of the shape of u.
        """
        edges = even_log_snr(self.process, len(self.probabilities) + 1)
        part = edges[0] - edges[1]
        index, fraction = _inverse(self.probabilities, u)
        t = self.process.time(edges[index] - part * fraction)
        density = -self.process.dlogsnr_dt(t) * self.probabilities[index] / part
        return t, 1 / density


def _step_log_snr(process: Process) -> Tensor:
    """log-SNR at the steps 2..T, clamped to +-MAX_ABS_LOG_SNR."""
    return process.log_snr(process.step_times())[2:].clamp(-MAX_ABS_LOG_SNR, MAX_ABS_LOG_SNR)


def _root_mean_squares(pilot: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Root mean squares of `values` at the pilot's log-SNRs, interpolated at others, linearly in the logarithm."""
    place, inverse = np.unique(pilot.cpu().numpy(), return_inverse=True)
    squares = values.to("cpu", torch.float64).numpy() ** 2
    mean = np.bincount(inverse, squares) / np.bincount(inverse)
    if not np.isfinite(mean).all() or not mean.any():
        raise ValueError("the pilot's terms must be finite and some above 0; the model gives NaN, or has no error")
    log_root = np.log(np.maximum(mean, 1e-12 * mean.max())) / 2
    return torch.tensor(np.exp(np.interp(at.numpy(), place, log_root)))


def _defended(roots: Tensor) -> Tensor:
    return UNIFORM_FRACTION / len(roots) + (1 - UNIFORM_FRACTION) * roots / roots.sum()


def _inverse(probabilities: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the part into which each u falls, int64, and the fraction of the part below u, in [0, 1]."""
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), probabilities.cumsum(0)])
    index = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, len(probabilities) - 1)
    return index, ((u - edges[index]) / probabilities[index]).clamp(0, 1)
