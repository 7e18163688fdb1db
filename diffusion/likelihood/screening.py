"""Schedules screened without training: from one network's denoising error against log-SNR, the bounds of others.

A schedule enters the two bounds through the log-SNRs of its steps and ends alone. With two errors measured once against
log-SNR l (Kingma et al. 2021, section 5), E(l) = E ||eps - eps_theta||^2 and X(l) = E ||x_0 - clip(x_theta)||^2,

    continuous   KL(q(x_T | x_0) || N(0, p^2 I)) + 1/2 integral of E dl + E[-log p(x_0 | z) at the highest log-SNR]
    chain        sum over t of KL(q(x_s | x_t, x_0) || p_theta) = D/2 (v/V - 1 - log v/V) + coef_x0^2 X(l_t) / 2V

with the posterior's variance v and coefficient and the reverse variance V of the schedule's own steps. X is exp(-l) E
where nothing is clipped; the chain's bound is of clipped estimates (`likelihood.ReverseKernel`), which matters where
there is little signal. The chain's sum minus 1/2 integral of exp(l) X dl over the same log-SNRs is what it loses by its
finite steps, the discretisation gap. All of it holds for THIS network: training with another schedule gives another
one. Nothing follows for the Frechet distance, and nothing outside the log-SNRs that were measured.
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

from diffusion.likelihood.continuous import log_snr_ends
from diffusion.likelihood.discrete import bits_per_dim
from diffusion.process.kernels import posterior, reverse_variance
from diffusion.process.sde import Process

TENSOR_FIELDS = ("log_snr", "mse", "x0_mse", "reconstruction")
INTEGRATION_POINTS = 4096  # of the integral, between two log-SNRs
LOG_SNR_TOLERANCE = 1e-6  # of the range, for rounding


@dataclass(frozen=True)
class DenoisingCurve:
    """The squared errors of eps and of x_0 on held-out images against log-SNR, by groups of images.

    Attributes:
        log_snr: descending, float64 [G].
        mse: of eps: means over the images of each group, summed over dimensions, above 0, float64 [K, G].
        x0_mse: of x_0, whose estimate is clipped to [-1, 1], likewise.
        second_moment: mean of ||x_0||^2.
        reconstruction: mean of -log p(x_0 | x_t) by the channel, nats, float64 [G]; no network takes part.
        dimensions: of an image.
        package_sha256: the model.
        dataset_fingerprint: the data.
        images: how many.
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
        """The text of `denoising.json`."""
        values = vars(self) | {name: getattr(self, name).tolist() for name in TENSOR_FIELDS}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DenoisingCurve":
        """Of `denoising.json`.

        Raises:
            ValueError: it is not that of a curve.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            for name in TENSOR_FIELDS:
                values[name] = torch.tensor(values[name], dtype=torch.float64)
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a denoising curve of this version: {error}") from None

    def integral(self, low: float, high: float) -> Tensor:
        """The integral of mse over log-SNR, of each group, [K]."""
        log_snr = torch.linspace(low, high, INTEGRATION_POINTS, dtype=torch.float64)
        return torch.trapezoid(self.at(log_snr, self.mse), log_snr)

    def x0_integral(self, low: float, high: float) -> Tensor:
        """The integral of SNR x0_mse over log-SNR, of each group, [K]."""
        log_snr = torch.linspace(low, high, INTEGRATION_POINTS, dtype=torch.float64)
        return torch.trapezoid(log_snr.exp() * self.at(log_snr, self.x0_mse), log_snr)

    def at(self, log_snr: Tensor, errors: Tensor) -> Tensor:
        """One of the errors of each group, its logarithm linear between the points; float64 [K, N]."""
        return torch.stack([torch.exp(self._between(log_snr, group.log())) for group in errors])

    def reconstruction_at(self, log_snr: float) -> float:
        """Nats of the continuous bound's reconstruction term."""
        return float(self._between(torch.tensor([log_snr], dtype=torch.float64), self.reconstruction))

    def _between(self, log_snr: Tensor, values: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(-log_snr.numpy(), -self.log_snr.numpy(), values.numpy()))


@dataclass(frozen=True)
class Estimate:
    """Bits per dimension, and the standard error from the spread of the groups of images."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, nats: Tensor, dimensions: int) -> "Estimate":
        """The mean over groups, nats [K]."""
        bits = bits_per_dim(nats, dimensions)
        return cls(float(bits.mean()), float(bits.std()) / len(bits) ** 0.5)


@dataclass(frozen=True)
class ScreeningResult:
    """What a schedule would have of the curve's network.

    Attributes:
        log_snr: its lowest and highest.
        continuous_vlb: the continuous bound.
        diffusion: the chain's sum over its steps 2..T.
        gap: that minus what it tends to with ever more steps between the same log-SNRs.
    """

    log_snr: tuple[float, float]
    continuous_vlb: Estimate
    diffusion: Estimate
    gap: Estimate


def screen(curve: DenoisingCurve, process: Process) -> ScreeningResult:
    """A process by the curve of another's network.

    Raises:
        ValueError: log-SNRs outside the curve's, or a reverse variance that is learned.
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
    """KL(q(x_T | x_0) || N(0, p^2 I)), nats (`likelihood.prior_kl`, of the mean second moment)."""
    end = torch.tensor([process.t_max], dtype=torch.float64)
    mean = float(process.alpha(end)) / process.prior_std
    variance = (float(process.sigma(end)) / process.prior_std) ** 2
    return 0.5 * (mean**2 * curve.second_moment + curve.dimensions * (variance - 1 - math.log(variance)))


def _chain_diffusion(curve: DenoisingCurve, process: Process) -> Tensor:
    """The sum over the steps 2..T of L_{t-1}, nats of each group, [K]."""
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
