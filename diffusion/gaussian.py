"""Exact answers: data whose noisy marginals, denoisers and probability-flow ODE are known in closed form."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.schedule import Schedule, rows


@dataclass(frozen=True)
class GaussianData:
    """x_0 ~ N(mean, variance) in every dimension, so x_t ~ N(alpha mean, alpha^2 variance + sigma^2)."""

    mean: float
    variance: float

    @property
    def entropy(self) -> float:
        """Differential entropy of one dimension, nats."""
        return 0.5 * math.log(2 * math.pi * math.e * self.variance)

    def variance_at(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Variance of x_t, float64."""
        return schedule.alpha[t] ** 2 * self.variance + schedule.sigma[t] ** 2

    def x0_variance(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Var(x_0 | x_t), float64."""
        return self.variance * schedule.sigma[t] ** 2 / self.variance_at(schedule, t)

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """E[eps | x_t] = sigma_t (x_t - alpha_t mean) / Var(x_t)."""

        def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
            centred = x_t - rows(schedule.alpha[t], x_t) * self.mean
            return rows(schedule.sigma[t] / self.variance_at(schedule, t), x_t) * centred

        return Denoiser(epsilon, schedule, "epsilon")


@dataclass(frozen=True)
class MixtureData:
    """A one-dimensional mixture of Gaussians: its ODE keeps the distribution function of every point."""

    weights: tuple[float, ...] = (0.35, 0.65)
    means: tuple[float, ...] = (-0.7, 0.5)
    stds: tuple[float, ...] = (0.15, 0.3)

    def _components(self, schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and variances of x_t's components, each [B or 1, ..., K]."""
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds))
        alpha, sigma = rows(schedule.alpha[t], like)[..., None], rows(schedule.sigma[t], like)[..., None]
        return weights.log(), alpha * means, (alpha * stds) ** 2 + sigma**2

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """Eps = -sigma score of the mixture, exact."""

        def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
            x = x_t.to(torch.float64)
            log_weights, means, variances = self._components(schedule, t, x)
            log_p = log_weights - (x[..., None] - means) ** 2 / (2 * variances) - variances.log() / 2
            score = (log_p.softmax(-1) * (means - x[..., None]) / variances).sum(-1)
            return (-rows(schedule.sigma[t], x) * score).to(x_t)

        return Denoiser(epsilon, schedule, "epsilon")

    def cdf(self, schedule: Schedule, t: int, x: Tensor) -> Tensor:
        """Distribution function of x_t."""
        log_weights, means, variances = self._components(schedule, torch.tensor([t]), x)
        return (log_weights.exp() * torch.special.ndtr((x[..., None] - means) / variances.sqrt())).sum(-1)

    def transport(self, schedule: Schedule, x_t: Tensor, t: int, s: int) -> Tensor:
        """The probability-flow ODE's exact solution from t to s: the point with the same quantile, by bisection."""
        quantile = self.cdf(schedule, t, x_t)
        low, high = torch.full_like(x_t, -20.0), torch.full_like(x_t, 20.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(schedule, s, middle) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def vp_schedule(steps: int, start: float = 0.05, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The continuous VP process at `steps` + 1 even times of [start, 1]: step 1 is `start`, the last step is 1."""
    time = torch.linspace(start, 1, steps + 1, dtype=torch.float64)
    log_alphas_cumprod = -(beta_min * time + (beta_max - beta_min) * time**2 / 2)
    increments = torch.diff(log_alphas_cumprod, prepend=torch.zeros(1, dtype=torch.float64))
    return Schedule(-torch.expm1(increments))
