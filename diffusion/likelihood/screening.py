"""Screening of schedules without training: the bounds of any schedule from one network's denoising error over log-SNR.

A schedule enters the two bounds only through the log-SNRs of its steps and ends. With two errors measured once against
log-SNR l (Kingma et al. 2021, section 5), E(l) = E ||eps - eps_theta||^2 and X(l) = E ||x_0 - clip(x_theta)||^2,

    continuous   KL(q(x_T | x_0) || N(0, p^2 I)) + 1/2 integral of E dl + E[-log p(x_0 | z) at the highest log-SNR]
    chain        sum over t of KL(q(x_s | x_t, x_0) || p_theta) = D/2 (v/V - 1 - log v/V) + coef_x0^2 X(l_t) / 2V

with the posterior's variance v and coefficient and the reverse variance V of the schedule's own steps. X is exp(-l) E
where nothing is clipped; the chain's bound is of clipped estimates (`discrete.ReverseKernel`), which matters where
there is little signal. The chain's sum minus 1/2 integral of exp(l) X dl over the same log-SNRs is what is lost by
taking finite steps, the discretisation gap. All of this holds for THIS network: training with another schedule gives
another network. Nothing follows for the Frechet distance, nor outside the log-SNRs that were measured.
"""
# torch.from_numpy has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.json_text import json_text
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.likelihood.discrete import bits_per_dim
from diffusion.process.kernels import posterior, reverse_variance
from diffusion.process.sde import Process

TENSOR_FIELDS = ("log_snr", "mse", "x0_mse", "reconstruction")
INTEGRATION_POINTS = 4096  # of the trapezoidal rule over log-SNR
LOG_SNR_TOLERANCE = 1e-6  # allowed beyond the measured range, for rounding


@dataclass(frozen=True)
class DenoisingCurve:
    """A network's squared errors of eps and of x_0 on held-out images over log-SNR, averaged within groups of images.

    Attributes:
        log_snr: measured log-SNRs, descending, float64 [G].
        mse: ||eps - eps_theta||^2, summed over dimensions, mean of each of K groups of images, above 0, float64 [K, G].
        x0_mse: ||x_0 - clip(x_theta)||^2, clipped to [-1, 1], summed and averaged in the same way, float64 [K, G].
        second_moment: mean over images of ||x_0||^2.
        reconstruction: mean of -log p(x_0 | x_t) by the channel decoder, without the network, nats, float64 [G].
        dimensions: D of an image.
        package_sha256: digest of the model's package.
        dataset_fingerprint: identifies the data.
        images: number of images measured.

    Raises:
        ValueError: log-SNRs that do not descend, shapes that differ, fewer than two groups, or errors that are not
            finite and above 0.
    """

    log_snr: Tensor
    mse: Tensor
    x0_mse: Tensor
    second_moment: float
    reconstruction: Tensor
    dimensions: int
    package_sha256: str
    dataset_fingerprint: str
    images: int

    def __post_init__(self) -> None:
        points = len(self.log_snr)
        if points < 2 or bool((self.log_snr.diff() >= 0).any()):
            raise ValueError("log_snr: allowed: at least two, descending")
        shapes = {self.mse.shape, self.x0_mse.shape, (len(self.mse), len(self.reconstruction))}
        if shapes != {(len(self.mse), points)} or len(self.mse) < 2:
            raise ValueError(f"the curve: allowed: a value at each of {points} log-SNRs, errors of at least 2 groups")
        finite = all(bool(getattr(self, name).isfinite().all()) for name in TENSOR_FIELDS)
        if not finite or bool((self.mse <= 0).any() or (self.x0_mse <= 0).any()):
            raise ValueError("the curve: allowed: finite numbers, errors above 0")

    def to_json(self) -> str:
        """The curve as the JSON text of `denoising.json`."""
        values = vars(self) | {name: getattr(self, name).tolist() for name in TENSOR_FIELDS}
        return json_text(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "DenoisingCurve":
        """The curve that the text of `denoising.json` describes.

        Raises:
            ValueError: the text is not that of a curve.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            for name in TENSOR_FIELDS:
                values[name] = torch.tensor(values[name], dtype=torch.float64)
            return cls(**values)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a denoising curve of this version: {error}") from None

    def integral(self, low: float, high: float) -> Tensor:
        """The integral of `mse` over log-SNR from `low` to `high`, of each group, float64 [K]."""
        log_snr = torch.linspace(low, high, INTEGRATION_POINTS, dtype=torch.float64)
        return torch.trapezoid(self.at(log_snr, self.mse), log_snr)

    def x0_integral(self, low: float, high: float) -> Tensor:
        """The integral of SNR times `x0_mse` over log-SNR from `low` to `high`, of each group, float64 [K]."""
        log_snr = torch.linspace(low, high, INTEGRATION_POINTS, dtype=torch.float64)
        return torch.trapezoid(log_snr.exp() * self.at(log_snr, self.x0_mse), log_snr)

    def at(self, log_snr: Tensor, errors: Tensor) -> Tensor:
        """One of the two errors at other log-SNRs, its logarithm interpolated linearly.

        Args:
            log_snr: float64 [N], within the measured range.
            errors: `mse` or `x0_mse`, float64 [K, G].

        Returns:
            float64 [K, N].
        """
        return torch.stack([torch.exp(self._between(log_snr, group.log())) for group in errors])

    def reconstruction_at(self, log_snr: float) -> float:
        """The reconstruction term of the continuous bound that starts at this log-SNR, nats."""
        return float(self._between(torch.tensor([log_snr], dtype=torch.float64), self.reconstruction))

    def _between(self, log_snr: Tensor, values: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(-log_snr.numpy(), -self.log_snr.numpy(), values.numpy()))


@dataclass(frozen=True)
class Estimate:
    """A value in bits per dimension, and its standard error from the spread of the groups of images.

    Attributes:
        value: bits/dim.
        standard_error: of the value, bits/dim.
    """

    value: float
    standard_error: float

    @classmethod
    def of(cls, nats: Tensor, dimensions: int) -> "Estimate":
        """The mean over groups and its standard error, from nats per image [K]."""
        bits = bits_per_dim(nats, dimensions)
        return cls(float(bits.mean()), float(bits.std()) / len(bits) ** 0.5)


@dataclass(frozen=True)
class ScreeningResult:
    """The bounds that a schedule would have with the curve's network.

    Attributes:
        log_snr: lowest and highest log-SNR of the schedule.
        continuous_vlb: the continuous bound.
        diffusion: sum of L_{t-1} over the chain's steps 2..T.
        gap: the discretisation gap: `diffusion` minus its limit as the number of steps between the same ends grows.
    """

    log_snr: tuple[float, float]
    continuous_vlb: Estimate
    diffusion: Estimate
    gap: Estimate


def screen(curve: DenoisingCurve, process: Process) -> ScreeningResult:
    """The bounds of a process, from the denoising curve of a network trained with another.

    Args:
        curve: the measured curve.
        process: the process to be screened.

    Raises:
        ValueError: log-SNRs outside the curve's, a terminal SNR of zero, or a learned reverse variance.
    """
    high, low = log_snr_ends(process)
    lowest, highest = float(curve.log_snr[-1]), float(curve.log_snr[0])
    if low < lowest - LOG_SNR_TOLERANCE or high > highest + LOG_SNR_TOLERANCE:
        raise ValueError(
            f"log-SNR from {low:.2f} to {high:.2f}; allowed: within {lowest:.2f} to {highest:.2f}, which was measured"
        )
    nats = _prior(curve, process) + curve.integral(low, high) / 2 + curve.reconstruction_at(high)
    continuous = Estimate.of(nats, curve.dimensions)
    diffusion = _chain_diffusion(curve, process)
    first, last = (float(process.log_snr(process.step_times()[[index]])) for index in (1, -1))
    gap = diffusion - curve.x0_integral(last, first) / 2
    return ScreeningResult((low, high), continuous, *(Estimate.of(each, curve.dimensions) for each in (diffusion, gap)))


def _prior(curve: DenoisingCurve, process: Process) -> float:
    """The prior term KL(q(x_T | x_0) || N(0, p^2 I)) of the data's mean second moment, nats."""
    end = torch.tensor([process.t_max], dtype=torch.float64)
    mean = float(process.alpha(end)) / process.prior_std
    variance = (float(process.sigma(end)) / process.prior_std) ** 2
    return 0.5 * (mean**2 * curve.second_moment + curve.dimensions * (variance - 1 - math.log(variance)))


def _chain_diffusion(curve: DenoisingCurve, process: Process) -> Tensor:
    """The sum of L_{t-1} over the steps 2..T, of each group, nats [K]."""
    if process.reverse_variance == "learned":
        raise ValueError(
            "process.reverse_variance = learned: its KL is not of the error alone; allowed: beta, beta_tilde"
        )
    times = process.step_times()
    s, t = times[1:-1], times[2:]
    exact, variance = posterior(process, s, t), reverse_variance(process, s, t, process.reverse_variance)
    log_snr = process.log_snr(t)
    ratio = exact.variance / variance
    x_0_error = curve.at(log_snr, curve.x0_mse)
    of_variance = curve.dimensions * (ratio - 1 - ratio.log())
    return 0.5 * (of_variance + exact.coef_x_0**2 * x_0_error / variance).sum(1)
