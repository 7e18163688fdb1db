"""Noise schedules: log-SNR as a falling function of time, in closed form, and the betas of the discrete chain.

A schedule says how fast noise comes, a process (`sde.py`) what noise does. Here t runs over [0, 1] and log_snr is that
of a variance-preserving process, log(a / (1 - a)) with a = alpha_t^2 (`alphas_cumprod`). All arithmetic is float64.
"""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MIN_TIME = 1e-3  # where a schedule that has its least noise at a finite log-SNR begins; t = 0 is data


class Schedule(ABC):
    """log-SNR over t in (0, 1], strictly falling; t is a float64 tensor of any shape."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2) of the variance-preserving process."""

    @abstractmethod
    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative of log_snr, negative."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] with this log-SNR, by bisection; beyond the ends, the nearest end."""
        return invert(self.log_snr, log_snr)

    def network_time_fraction(self, t: Tensor) -> Tensor:
        """What networks are told of t, on the scale of 0..1."""
        return t


def invert(falling: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """The t in [0, 1] where a falling function meets `target`, to the last bit of t."""
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(60):
        middle = (low + high) / 2
        above = falling(middle) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def clamp_to_open_unit(t: Tensor) -> Tensor:
    """The nearest float64 in (0, 1), where a schedule that goes on for ever is finite."""
    return t.clamp(1e-300, 1 - 2**-53)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) in full precision; torch's own is x from 20 on, 2e-9 off there."""
    return -logsigmoid(-x)


def log_snr_of(log_a: Tensor) -> Tensor:
    """log(a / (1 - a)) from log a <= 0."""
    return log_a - torch.log(-torch.expm1(log_a))


class IntegratedBeta(Schedule):
    """A schedule given by beta(t) of equation (12) and its integral B: a = exp(-B(t))."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """The rate in equation (12)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t) = integral of beta from 0 to t."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)) with a = exp(-B(t))."""
        return log_snr_of(-self.integral(t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-beta(t) / (1 - a)."""
        return self.beta(t) / torch.expm1(-self.integral(t))


class LinearBeta(IntegratedBeta):
    """beta(t) = first + (last - first) t."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.rise = first, last - first

    def beta(self, t: Tensor) -> Tensor:
        """Linear in t."""
        return self.first + self.rise * t

    def integral(self, t: Tensor) -> Tensor:
        """First t + rise t^2 / 2."""
        return self.first * t + self.rise * t**2 / 2

    def time(self, log_snr: Tensor) -> Tensor:
        """The root of B(t) = -log a, in the form that does not cancel."""
        total = softplus(-log_snr).clamp(max=self.first + self.rise / 2)  # beyond B(1) falling betas have no root
        return 2 * total / (self.first + torch.sqrt(self.first**2 + 2 * self.rise * total))


class QuadraticBeta(IntegratedBeta):
    """beta(t) = (root_first + (root_last - root_first) t)^2: linear in sqrt(beta)."""

    def __init__(self, first: float, last: float) -> None:
        self.root, self.rise = first**0.5, last**0.5 - first**0.5

    def beta(self, t: Tensor) -> Tensor:
        """The square of a line."""
        return (self.root + self.rise * t) ** 2

    def integral(self, t: Tensor) -> Tensor:
        """root^2 t + root rise t^2 + rise^2 t^3 / 3."""
        return t * (self.root**2 + self.rise * t * (self.root + self.rise * t / 3))


class SigmoidBeta(IntegratedBeta):
    """beta(t) = first + (last - first) sigmoid(12 t - 6)."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.rise = first, last - first

    def beta(self, t: Tensor) -> Tensor:
        """The logistic function on [-6, 6], scaled."""
        return self.first + self.rise * torch.sigmoid(12 * t - 6)

    def integral(self, t: Tensor) -> Tensor:
        """First t + rise (softplus(12 t - 6) - softplus(-6)) / 12."""
        return self.first * t + self.rise * (softplus(12 * t - 6) - math.log1p(math.exp(-6))) / 12


class Cosine(Schedule):
    """a = cos^2(angle(t)) / cos^2(angle(0)), angle(t) = (t + s) / (1 + s) pi / 2."""

    def __init__(self, s: float) -> None:
        self.rate = math.pi / 2 / (1 + s)
        self.offset = s * self.rate

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)); 1 - a = sin(angle(t) - angle(0)) sin(angle(t) + angle(0)) / cos^2(angle(0))."""
        angle = self.offset + self.rate * t
        kept = torch.cos(angle) ** 2
        lost = torch.sin(self.rate * t) * torch.sin(angle + self.offset)
        return torch.log(kept) - torch.log(lost)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative: -2 rate (tan + sin cos / lost) at angle(t)."""
        angle = self.offset + self.rate * t
        lost = torch.sin(self.rate * t) * torch.sin(angle + self.offset)
        return -2 * self.rate * (torch.tan(angle) + torch.sin(angle) * torch.cos(angle) / lost)


class LaplaceQuantile(Schedule):
    """log_snr = mean - scale sgn(1/2 - t) log(1 - |1 - 2 t|): t is the share of log-SNRs above it."""

    def __init__(self, mean: float, scale: float) -> None:
        self.mean, self.scale = mean, scale

    def log_snr(self, t: Tensor) -> Tensor:
        """The quantile function of the Laplace distribution at 1 - t."""
        return self.mean - self.scale * torch.sign(0.5 - t) * torch.log(2 * torch.minimum(t, 1 - t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-scale / min(t, 1 - t)."""
        return -self.scale / torch.minimum(t, 1 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The share of the distribution above."""
        distance = (log_snr - self.mean) / self.scale
        tail = torch.exp(-distance.abs()) / 2
        return clamp_to_open_unit(torch.where(distance > 0, tail, 1 - tail))


class LogNormalQuantile(Schedule):
    """log(edm_sigma) = p_mean + p_std ndtri(t); log_snr = -2 log(edm_sigma)."""

    def __init__(self, p_mean: float, p_std: float) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 times the quantile of log(edm_sigma)."""
        return -2 * (self.p_mean + self.p_std * torch.special.ndtri(t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-2 p_std over the normal density at the quantile."""
        density = torch.exp(-(torch.special.ndtri(t) ** 2) / 2) / math.sqrt(2 * math.pi)
        return -2 * self.p_std / density

    def time(self, log_snr: Tensor) -> Tensor:
        """The share of the distribution of edm_sigma below."""
        quantile = (-log_snr / 2 - self.p_mean) / self.p_std
        # torch's ndtr is (1 + erf) / 2, which is 0 below -8.3
        return clamp_to_open_unit(torch.special.erfc(-quantile / math.sqrt(2)) / 2)


class LinearLogSnr(Schedule):
    """log_snr falls along a line from `log_snr_max` at MIN_TIME to `log_snr_min` at 1."""

    def __init__(self, log_snr_max: float, log_snr_min: float) -> None:
        self.log_snr_max, self.rate = log_snr_max, (log_snr_min - log_snr_max) / (1 - MIN_TIME)

    def log_snr(self, t: Tensor) -> Tensor:
        """The line."""
        return self.log_snr_max + self.rate * (t - MIN_TIME)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """Its slope."""
        return torch.full_like(t, self.rate)

    def time(self, log_snr: Tensor) -> Tensor:
        """Its inverse."""
        return (MIN_TIME + (log_snr - self.log_snr_max) / self.rate).clamp(MIN_TIME, 1)


class Table(Schedule):
    """log a given at t = 0, 1 / T, ..., 1 and linear between: beta(t) piecewise constant.

    Args:
        log_a: float64 [T + 1], falling from 0; the last may be -inf (a terminal SNR of zero).
    """

    def __init__(self, log_a: Tensor) -> None:
        self.log_a = log_a
        self.steps = len(log_a) - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)) of the interpolated log a; 0 and less is data."""
        return self.log_snr_at(t * self.steps)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-beta / (1 - a), beta that of the step that ends at or after t."""
        return self.steps * self.dlogsnr_dstep(t * self.steps)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of the interpolation."""
        return self.step(log_snr) / self.steps

    def log_snr_at(self, step: Tensor) -> Tensor:
        """log_snr where time is counted in steps, 0..T."""
        step = step.double().clamp(0, self.steps)
        index = torch.floor(step).long()
        fraction = step - index
        left, right = self.log_a[index], self.log_a[(index + 1).clamp(max=self.steps)]
        return log_snr_of(torch.where(fraction > 0, left + fraction * (right - left), left))

    def dlogsnr_dstep(self, step: Tensor) -> Tensor:
        """The slope per step; whole steps are given as such, since t / T * T may round to beyond t."""
        step = step.double()
        index = torch.ceil(step).long().clamp(1, self.steps)
        beta = self.log_a[index - 1] - self.log_a[index]
        return -beta * (1 + torch.exp(self.log_snr_at(step)))

    def step(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr_at`; no log-SNR lies within a last step to -inf."""
        target = softplus(-log_snr)
        right = torch.searchsorted(-self.log_a, target.contiguous()).clamp(1, self.steps)
        below, above = -self.log_a[right - 1], -self.log_a[right]
        fraction = torch.where(torch.isinf(above), torch.isinf(target).double(), (target - below) / (above - below))
        return (right - 1 + fraction).clamp(0, self.steps)
