"""Where a bound's terms are evaluated: more often where they are large and vary, each with the weight 1 / probability.

The sum over steps and the integral over time are estimated from few evaluations. The best density for independent draws
goes with the root mean square of what is summed (Nichol & Dhariwal 2021, section 3.3, for training); here a pilot of a
few evaluations measures it. Drawn by inverse transform from uniforms spread over all images and draws of an evaluation,
the steps are stratified too, and an estimate stays unbiased whatever the proposal: it depends on the pilot through the
weights alone, so the pilot's images and noise must be drawn apart from those scored.
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
UNIFORM_FRACTION = 0.05  # share of draws that stays uniform: no weight is beyond 20 times the uniform one
MAX_ABS_LOG_SNR = 30.0  # beyond this log-SNR a chain's steps are not told apart


def spread_uniforms(generator: np.random.Generator, images: int, draws: int) -> Floats:
    """u [images, draws] in [0, 1), each uniform: one per image in each of `draws` equal parts.

    Within a part, the images have one each of `images` parts of it, in random order. An evaluation draws them once for
    its whole set, so that no image's u depends on how the set is cut into blocks.
    """
    order = np.stack([generator.permutation(images) for _ in range(draws)], axis=1)
    part = (order + generator.random((images, draws))) / images
    return np.minimum((np.arange(draws) + part) / draws, np.nextafter(1, 0))


def even_log_snr(process: Process, count: int, bound: float = math.inf) -> Tensor:
    """`count` log-SNRs from that at t_min down to that at t_max, none beyond +-`bound`, evenly; float64 [count]."""
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).clamp(-bound, bound)
    return torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64)


def pilot_steps(process: Process, count: int) -> Tensor:
    """At most `count` steps in 2..T for a pilot, close to even in log-SNR and each once; int64."""
    log_snr = _step_log_snr(process)
    at = torch.searchsorted(-log_snr, -even_log_snr(process, count, MAX_ABS_LOG_SNR)).clamp(max=len(log_snr) - 1)
    return torch.tensor(np.unique(at.numpy())) + 2


@dataclass(frozen=True)
class StepProposal:
    """How often each step of a chain is evaluated.

    Attributes:
        probabilities: float64 [T - 1], of the steps 2..T.
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        if not bool((self.probabilities > 0).all()) or abs(float(self.probabilities.sum()) - 1) > 1e-9:
            raise ValueError("probabilities: allowed: above 0 and of sum 1, so that every step can be drawn")

    @classmethod
    def uniform(cls, num_steps: int) -> Self:
        """Every step of 2..T alike."""
        return cls(torch.full((num_steps - 1,), 1 / (num_steps - 1), dtype=torch.float64))

    @classmethod
    def from_pilot(cls, process: Process, steps: Tensor, terms: Tensor) -> Self:
        """In proportion to the root mean square of L_{t-1}, its logarithm linear in log-SNR between a pilot's steps.

        Args:
            process: of T steps.
            steps: int64 [P], in 2..T, such as `pilot_steps` for several images.
            terms: L_{t-1} of each, nats [P].

        Raises:
            ValueError: terms that are not finite, or none above 0.
        """
        log_snr = _step_log_snr(process)
        return cls(_defended(_root_mean_squares(log_snr[steps.cpu() - 2], terms, log_snr)))

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Steps in 2..T by inverse transform of u in [0, 1), int64, and their weights 1 / probability; shape of u."""
        index, _ = _inverse(self.probabilities, u)
        return index + 2, 1 / self.probabilities[index]


@dataclass(frozen=True)
class TimeProposal:
    """How often each time of a process is evaluated: equal parts of its log-SNR range, alike within each.

    Attributes:
        process: which.
        probabilities: float64 [parts], from t_min to t_max.
    """

    process: Process
    probabilities: Tensor

    @classmethod
    def uniform(cls, process: Process) -> Self:
        """Uniform in log-SNR."""
        return cls(process, torch.ones(1, dtype=torch.float64))

    @classmethod
    def from_pilot(cls, process: Process, log_snr: Tensor, errors: Tensor, parts: int = 256) -> Self:
        """In proportion to the root mean square of ||eps - eps_theta||^2, its logarithm linear between pilot points.

        Args:
            process: with a finite log-SNR range.
            log_snr: float64 [P], such as `even_log_snr` for several images.
            errors: squared errors there [P].
            parts: of the log-SNR range.

        Raises:
            ValueError: errors that are not finite, or none above 0.
        """
        edges = even_log_snr(process, parts + 1)
        middle = (edges[1:] + edges[:-1]) / 2
        return cls(process, _defended(_root_mean_squares(log_snr, errors, middle)))

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times by inverse transform of u in [0, 1), and their weights, 1 / density over t; float64, shape of u."""
        edges = even_log_snr(self.process, len(self.probabilities) + 1)
        part = edges[0] - edges[1]
        index, fraction = _inverse(self.probabilities, u)
        t = self.process.time(edges[index] - part * fraction)
        density = -self.process.dlogsnr_dt(t) * self.probabilities[index] / part
        return t, 1 / density


def _step_log_snr(process: Process) -> Tensor:
    """log-SNR at the steps 2..T, where it is finite."""
    return process.log_snr(process.step_times())[2:].clamp(-MAX_ABS_LOG_SNR, MAX_ABS_LOG_SNR)


def _root_mean_squares(pilot: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Root mean square of `values` at each pilot log-SNR, and between them, at log-SNRs `at`, linear in logarithms."""
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
    """The part each u falls in, int64, and how far into it, in [0, 1)."""
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), probabilities.cumsum(0)])
    index = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, len(probabilities) - 1)
    return index, ((u - edges[index]) / probabilities[index]).clamp(0, 1)
