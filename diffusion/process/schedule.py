"""Noise schedules in continuous time: log-SNR as a strictly falling function of t, in closed form.

A schedule says when noise is added, a process (`sde.py`) how it acts on data. Here t runs over [0, 1], t = 0 is data,
and log_snr is that of the variance-preserving process with the same schedule,

    log_snr = log(alpha_t^2 / sigma_t^2) = log(a / (1 - a)),   a = alpha_t^2 (`alphas_cumprod`),

dimensionless, in nats. All arithmetic is float64. The betas of the discrete chain are in `betas.py`.
"""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MIN_TIME = 1e-3  # t of the least noise of a schedule with a finite highest log-SNR; t = 0 is data


class Schedule(ABC):
    """A noise schedule: log-SNR as a strictly falling function of t in (0, 1].

    A subclass defines `log_snr` and `dlogsnr_dt`, and overrides `time` where the inverse has a closed form. Times and
    log-SNRs are float64 tensors of any shape, and results have the shape of the argument.
    """

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2) of the variance-preserving process at t in (0, 1]."""

    @abstractmethod
    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative d log_snr / dt at t in (0, 1]; negative."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: the t in [0, 1] with this log-SNR, clamped to the nearest end outside the range.

        This default bisects; subclasses with a closed form override it.
        """
        return invert(self.log_snr, log_snr)

    def network_time_fraction(self, t: Tensor) -> Tensor:
        """The time on a scale of 0 to 1 that the network is conditioned on; t itself unless the schedule is learned."""
        return t


def invert(falling: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """The t in [0, 1] at which a falling function equals `target`, by 60 bisections, to the last bit of t.

    Args:
        falling: maps t in [0, 1], float64, to values of the same shape, elementwise and falling.
        target: values to reach, float64 of any shape; outside the function's range the nearest end is returned.

    Returns:
        float64, the shape of `target`.
    """
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(60):
        middle = (low + high) / 2
        above = falling(middle) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def clamp_to_open_unit(t: Tensor) -> Tensor:
    """Clamp t to the float64 numbers strictly between 0 and 1, where a schedule with unbounded log-SNR is finite."""
    return t.clamp(1e-300, 1 - 2**-53)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to full precision; torch's own returns x from x = 20 on, where it is off by 2e-9."""
    return -logsigmoid(-x)


def log_snr_of(log_a: Tensor) -> Tensor:
    """log(a / (1 - a)) given log(a) <= 0, where a = alpha_t^2; +inf at log(a) = 0."""
    return log_a - torch.log(-torch.expm1(log_a))


class IntegratedBeta(Schedule):
    """A schedule given by beta(t) of the VP SDE, equation (12) (Song et al. 2021, equation 11), and its integral.

        a = alpha_t^2 = exp(-B(t)),   B(t) = integral of beta from 0 to t,   d log_snr / dt = -beta(t) / (1 - a)

    It is the limit of DDPM's chain with beta_i = beta(i / N) / N as N grows.
    """

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """The rate of the VP SDE, equation (12), per unit of t, at t in [0, 1]."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t, dimensionless; it rises from B(0) = 0."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)) with a = exp(-B(t))."""
        return log_snr_of(-self.integral(t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative -beta(t) / (1 - a)."""
        return self.beta(t) / torch.expm1(-self.integral(t))


class LinearBeta(IntegratedBeta):
    """beta(t) = beta_0 + (beta_1 - beta_0) t: the limit of DDPM's linear betas (Ho et al. 2020; Song et al. 2021).

    Args:
        beta_0: the rate at t = 0, above 0; 0.1 for DDPM's beta_start = 1e-4 at T = 1000.
        beta_1: the rate at t = 1, above 0; 20 for DDPM's beta_end = 0.02 at T = 1000.
    """

    def __init__(self, beta_0: float, beta_1: float) -> None:
        self.beta_0, self.rise = beta_0, beta_1 - beta_0

    def beta(self, t: Tensor) -> Tensor:
        """The line from beta_0 to beta_1."""
        return self.beta_0 + self.rise * t

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = beta_0 t + (beta_1 - beta_0) t^2 / 2."""
        return self.beta_0 * t + self.rise * t**2 / 2

    def time(self, log_snr: Tensor) -> Tensor:
        """The positive root of B(t) = -log(a) = c.

        It is t = 2 c / (beta_0 + sqrt(beta_0^2 + 2 (beta_1 - beta_0) c)), the form that does not cancel.
        """
        total = softplus(-log_snr).clamp(max=self.beta_0 + self.rise / 2)  # a falling beta(t) has no root beyond B(1)
        return 2 * total / (self.beta_0 + torch.sqrt(self.beta_0**2 + 2 * self.rise * total))


class QuadraticBeta(IntegratedBeta):
    """beta(t) = (r_0 + (r_1 - r_0) t)^2 with r_i = sqrt(beta_i): a straight line in sqrt(beta).

    The limit of the betas that DDPM's code calls `quad` and latent diffusion `scaled_linear` (Rombach et al. 2022).

    Args:
        beta_0: the rate at t = 0, above 0.
        beta_1: the rate at t = 1, above 0.
    """

    def __init__(self, beta_0: float, beta_1: float) -> None:
        self.root_beta_0, self.rise = beta_0**0.5, beta_1**0.5 - beta_0**0.5

    def beta(self, t: Tensor) -> Tensor:
        """The square of the line from sqrt(beta_0) to sqrt(beta_1)."""
        return (self.root_beta_0 + self.rise * t) ** 2

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = r_0^2 t + r_0 (r_1 - r_0) t^2 + (r_1 - r_0)^2 t^3 / 3."""
        return t * (self.root_beta_0**2 + self.rise * t * (self.root_beta_0 + self.rise * t / 3))


class SigmoidBeta(IntegratedBeta):
    """beta(t) = beta_0 + (beta_1 - beta_0) sigmoid(12 t - 6): the logistic curve on [-6, 6] (Xu et al. 2022).

    Args:
        beta_0: the rate that the curve comes from; beta(0) is 0.25 % of the way to beta_1.
        beta_1: the rate that it goes to; beta(1) is 99.75 % of the way.
    """

    def __init__(self, beta_0: float, beta_1: float) -> None:
        self.beta_0, self.rise = beta_0, beta_1 - beta_0

    def beta(self, t: Tensor) -> Tensor:
        """The logistic curve, scaled to run from about beta_0 to about beta_1."""
        return self.beta_0 + self.rise * torch.sigmoid(12 * t - 6)

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = beta_0 t + (beta_1 - beta_0) (softplus(12 t - 6) - softplus(-6)) / 12."""
        return self.beta_0 * t + self.rise * (softplus(12 * t - 6) - math.log1p(math.exp(-6))) / 12


class Cosine(Schedule):
    """a = cos^2(angle(t)) / cos^2(angle(0)), angle(t) = (t + s) / (1 + s) pi / 2 (Nichol & Dhariwal 2021, equation 17).

    log-SNR falls to -inf at t = 1, where a = 0.

    Args:
        s: offset that keeps the first steps from being too small, above 0; the paper's is 0.008.
    """

    def __init__(self, s: float) -> None:
        self.rate = math.pi / 2 / (1 + s)
        self.offset = s * self.rate

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)), with 1 - a = sin(angle(t) - angle(0)) sin(angle(t) + angle(0)) / cos^2(angle(0)).

        In this form 1 - a does not cancel near t = 0.
        """
        angle = self.offset + self.rate * t
        kept = torch.cos(angle) ** 2
        lost = torch.sin(self.rate * t) * torch.sin(angle + self.offset)
        return torch.log(kept) - torch.log(lost)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-2 angle' (tan(angle) + sin(angle) cos(angle) / lost) at angle(t).

        lost = sin(angle(t) - angle(0)) sin(angle(t) + angle(0)) is cos^2(angle(0)) (1 - a).
        """
        angle = self.offset + self.rate * t
        lost = torch.sin(self.rate * t) * torch.sin(angle + self.offset)
        return -2 * self.rate * (torch.tan(angle) + torch.sin(angle) * torch.cos(angle) / lost)


class LaplaceQuantile(Schedule):
    """log-SNR that is Laplace(mean, scale) distributed when t is uniform on [0, 1] (Hang et al. 2024).

        log_snr = mean - scale sgn(1/2 - t) log(1 - |1 - 2 t|)

    Uniform t then trains most near log_snr = mean. log-SNR is unbounded at t = 0 and t = 1.

    Args:
        mean: location of the distribution, a log-SNR.
        scale: its scale b, above 0; the standard deviation is sqrt(2) b.
    """

    def __init__(self, mean: float, scale: float) -> None:
        self.mean, self.scale = mean, scale

    def log_snr(self, t: Tensor) -> Tensor:
        """The Laplace distribution's quantile function at 1 - t."""
        return self.mean - self.scale * torch.sign(0.5 - t) * torch.log(2 * torch.minimum(t, 1 - t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative -scale / min(t, 1 - t)."""
        return -self.scale / torch.minimum(t, 1 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        """One minus the Laplace distribution function: the probability of a higher log-SNR."""
        distance = (log_snr - self.mean) / self.scale
        tail = torch.exp(-distance.abs()) / 2
        return clamp_to_open_unit(torch.where(distance > 0, tail, 1 - tail))


class LogNormalQuantile(Schedule):
    """edm_sigma = exp(-log_snr / 2) that is log-normally distributed when t is uniform (Karras et al. 2022, table 1).

        log(edm_sigma) = p_mean + p_std Phi^{-1}(t),   log_snr = -2 log(edm_sigma),

    with Phi the standard normal distribution function. log-SNR is unbounded at t = 0 and t = 1.

    Args:
        p_mean: mean of log(edm_sigma); the paper's is -1.2.
        p_std: standard deviation of log(edm_sigma), above 0; the paper's is 1.2.
    """

    def __init__(self, p_mean: float, p_std: float) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 times the quantile of log(edm_sigma) at t."""
        return -2 * (self.p_mean + self.p_std * torch.special.ndtri(t))

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-2 p_std / phi(Phi^{-1}(t)), phi the standard normal density."""
        density = torch.exp(-(torch.special.ndtri(t) ** 2) / 2) / math.sqrt(2 * math.pi)
        return -2 * self.p_std / density

    def time(self, log_snr: Tensor) -> Tensor:
        """The distribution function of edm_sigma: the probability of a lower noise level."""
        quantile = (-log_snr / 2 - self.p_mean) / self.p_std
        # torch's ndtr is (1 + erf) / 2, which is 0 below -8.3
        return clamp_to_open_unit(torch.special.erfc(-quantile / math.sqrt(2)) / 2)


class LinearLogSnr(Schedule):
    """log-SNR on a straight line, from log_snr_max at t = MIN_TIME to log_snr_min at t = 1.

    Then edm_sigma is geometric in t: sigma_min (sigma_max / sigma_min)^u with u = (t - MIN_TIME) / (1 - MIN_TIME), the
    noise levels of the variance-exploding process (Song et al. 2021).

    Args:
        log_snr_max: log-SNR at MIN_TIME.
        log_snr_min: log-SNR at 1, below `log_snr_max`.
    """

    def __init__(self, log_snr_max: float, log_snr_min: float) -> None:
        self.log_snr_max, self.rate = log_snr_max, (log_snr_min - log_snr_max) / (1 - MIN_TIME)

    def log_snr(self, t: Tensor) -> Tensor:
        """The line, continued below MIN_TIME."""
        return self.log_snr_max + self.rate * (t - MIN_TIME)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The constant (log_snr_min - log_snr_max) / (1 - MIN_TIME)."""
        return torch.full_like(t, self.rate)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of the line, clamped to [MIN_TIME, 1]."""
        return (MIN_TIME + (log_snr - self.log_snr_max) / self.rate).clamp(MIN_TIME, 1)


class Table(Schedule):
    """log(a) given at t = 0, 1 / T, ..., 1 and linear in between: beta(t) = -d log(a) / dt is piecewise constant.

    At t = i / T it is exactly the chain of T steps. `log_snr_at`, `dlogsnr_dstep` and `step` count time in steps, 0..T,
    the other methods in t = step / T.

    Args:
        log_a: log(alphas_cumprod), float64 [T + 1], falling from log_a[0] = 0; the last may be -inf, a terminal SNR of
            zero.
    """

    def __init__(self, log_a: Tensor) -> None:
        self.log_a = log_a
        self.steps = len(log_a) - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a / (1 - a)) of the interpolated log(a), t in [0, 1]; +inf at t = 0."""
        return self.log_snr_at(t * self.steps)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """-beta / (1 - a) per unit of t; at a knot, beta is that of the step ending there."""
        return self.steps * self.dlogsnr_dstep(t * self.steps)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of the interpolation, in [0, 1]."""
        return self.step(log_snr) / self.steps

    def log_snr_at(self, step: Tensor) -> Tensor:
        """log-SNR at times counted in steps, clamped to 0..T; float64 of any shape."""
        step = step.double().clamp(0, self.steps)
        index = torch.floor(step).long()
        fraction = step - index
        left, right = self.log_a[index], self.log_a[(index + 1).clamp(max=self.steps)]
        return log_snr_of(torch.where(fraction > 0, left + fraction * (right - left), left))

    def dlogsnr_dstep(self, step: Tensor) -> Tensor:
        """d log_snr / d step at times counted in steps.

        Whole steps must be passed as such: t / T * T may round to just beyond t, into the next step.
        """
        step = step.double()
        index = torch.ceil(step).long().clamp(1, self.steps)
        beta = self.log_a[index - 1] - self.log_a[index]
        return -beta * (1 + torch.exp(self.log_snr_at(step)))

    def step(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr_at`, in steps; no finite log-SNR lies within a last step that ends at -inf."""
        target = softplus(-log_snr)
        right = torch.searchsorted(-self.log_a, target.contiguous()).clamp(1, self.steps)
        below, above = -self.log_a[right - 1], -self.log_a[right]
        fraction = torch.where(torch.isinf(above), torch.isinf(target).double(), (target - below) / (above - below))
        return (right - 1 + fraction).clamp(0, self.steps)
