"""Test data with exact answers: Gaussians and mixtures whose noisy marginals, denoisers and ODE have closed forms."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.process.sde import Chain, Process
from diffusion.tensors import expand_to


def exact_denoiser(process: Process, epsilon: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser whose "network" is a given function of x_t and t.

    Args:
        process: the forward process; its schedule must not be learned, since time is recovered from the network's.
        epsilon: maps x_t [B, ...] and t [B] in the process's own time to E[eps | x_t].
    """

    def network(x_t: Tensor, time: Tensor, label: Tensor | None) -> Tensor:  # noqa: ARG001 - a network's form
        return epsilon(x_t, time + 1 if isinstance(process, Chain) else time / process.num_steps)

    return Denoiser(network, process, "epsilon")


@dataclass(frozen=True)
class GaussianData:
    """Data x_0 ~ N(mean, variance), independent in every dimension.

    Then x_t ~ N(alpha_t mean, alpha_t^2 variance + sigma_t^2).
    """

    mean: float
    variance: float

    @property
    def entropy(self) -> float:
        """Differential entropy of one dimension, in nats: log(2 pi e variance) / 2."""
        return 0.5 * math.log(2 * math.pi * math.e * self.variance)

    def variance_at(self, process: Process, t: Tensor) -> Tensor:
        """Var(x_t) = alpha_t^2 variance + sigma_t^2, float64, the shape of t."""
        return process.alpha(t) ** 2 * self.variance + process.sigma(t) ** 2

    def x0_variance(self, process: Process, t: Tensor) -> Tensor:
        """Var(x_0 | x_t) = variance sigma_t^2 / Var(x_t), float64, the shape of t."""
        return self.variance * process.sigma(t) ** 2 / self.variance_at(process, t)

    def denoiser(self, process: Process) -> Denoiser:
        """The exact denoiser: E[eps | x_t] = sigma_t (x_t - alpha_t mean) / Var(x_t)."""

        def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
            centred = x_t - expand_to(process.alpha(t), x_t) * self.mean
            return expand_to(process.sigma(t) / self.variance_at(process, t), x_t) * centred

        return exact_denoiser(process, epsilon)


@dataclass(frozen=True)
class MixtureData:
    """A one-dimensional mixture of Gaussians, applied to every dimension on its own.

    In one dimension the probability-flow ODE keeps the quantile of every point, which gives its exact solution.

    Attributes:
        weights: of the components, of sum 1.
        means: of the components.
        stds: standard deviations of the components.
    """

    weights: tuple[float, ...] = (0.35, 0.65)
    means: tuple[float, ...] = (-0.7, 0.5)
    stds: tuple[float, ...] = (0.15, 0.3)

    def _components(self, process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights [K], and means and variances of the components of x_t, each [B or 1, ..., K]."""
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds))
        alpha, sigma = expand_to(process.alpha(t), like)[..., None], expand_to(process.sigma(t), like)[..., None]
        return weights.log(), alpha * means, (alpha * stds) ** 2 + sigma**2

    def denoiser(self, process: Process) -> Denoiser:
        """The exact denoiser: E[eps | x_t] = -sigma_t times the score of the mixture."""

        def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
            x = x_t.to(torch.float64)
            log_weights, means, variances = self._components(process, t, x)
            log_p = log_weights - (x[..., None] - means) ** 2 / (2 * variances) - variances.log() / 2
            score = (log_p.softmax(-1) * (means - x[..., None]) / variances).sum(-1)
            return (-expand_to(process.sigma(t), x) * score).to(x_t)

        return exact_denoiser(process, epsilon)

    def log_prob(self, process: Process, t: Tensor, x: Tensor) -> Tensor:
        """Log density of x_t in nats, elementwise, float64, the shape of x; t is [B] or one time."""
        log_weights, means, variances = self._components(process, t, x)
        log_p = log_weights - (x[..., None] - means) ** 2 / (2 * variances) - (2 * math.pi * variances).log() / 2
        return log_p.logsumexp(-1)

    def cdf(self, process: Process, t: Tensor, x: Tensor) -> Tensor:
        """Distribution function of x_t, elementwise, float64, the shape of x; t is [B] or one time."""
        log_weights, means, variances = self._components(process, t, x)
        return (log_weights.exp() * torch.special.ndtr((x[..., None] - means) / variances.sqrt())).sum(-1)

    def transport(self, process: Process, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at time s of the probability-flow ODE from x_t at time t, [B, ...].

        It is the point of the same quantile, found by bisection in [-200, 200].
        """
        quantile = self.cdf(process, t, x_t)
        low, high = torch.full_like(x_t, -200.0), torch.full_like(x_t, 200.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(process, s, middle) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2
