"""The Gaussian kernels of the chain: forward q, posterior q(x_s | x_t, x_0) and the reverse kernel p_theta.

Equations (1)-(6). All take any pair s < t of the chain's steps, so that a sampler may skip steps; s = t - 1 gives
DDPM's own kernels. Shapes: x [B, ...], s and t int64 [B]; coefficients are float64 [B].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.schedule import Schedule, rows

ReverseVariance = Literal["beta", "beta_tilde"]


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) = N(coef_x_t x_t + coef_x_0 x_0, variance I), float64 [B] each."""

    coef_x_t: Tensor
    coef_x_0: Tensor
    variance: Tensor

    def mean(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """The posterior mean, shape of x_t."""
        return rows(self.coef_x_t, x_t) * x_t + rows(self.coef_x_0, x_t) * x_0


def diffuse(schedule: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Equation (4): x_t = alpha_t x_0 + sigma_t eps."""
    t = t.cpu()
    return rows(schedule.alpha[t], x_0) * x_0 + rows(schedule.sigma[t], x_0) * eps


def posterior(schedule: Schedule, s: Tensor, t: Tensor) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0) for s < t (Ho et al. 2020, equation 7, for any pair of steps).

    beta_tilde = sigma_{t|s}^2 sigma_s^2 / sigma_t^2; it is 0 at s = 0, where x_0 is known.
    """
    alpha_ts = torch.exp(schedule.log_alpha[t] - schedule.log_alpha[s])
    variance_ts = schedule.transition_variance(s, t)
    variance_s, variance_t = schedule.sigma[s] ** 2, schedule.sigma[t] ** 2
    return Posterior(
        coef_x_t=alpha_ts * variance_s / variance_t,
        coef_x_0=schedule.alpha[s] * variance_ts / variance_t,
        variance=variance_ts * variance_s / variance_t,
    )


def reverse_variance(schedule: Schedule, s: Tensor, t: Tensor, kind: ReverseVariance) -> Tensor:
    """Sigma_theta of equation (6), float64 [B]: sigma_{t|s}^2 (`beta`) or the posterior variance (`beta_tilde`).

    At s = 0 beta_tilde is zero and no density exists: there it takes the value of the chain's second step.
    """
    if kind == "beta":
        return schedule.transition_variance(s, t)
    first = s == 0
    return posterior(schedule, torch.where(first, 1, s), torch.where(first, 2, t)).variance
