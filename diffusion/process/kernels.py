"""The Gaussian kernels of the chain: forward q, posterior q(x_s | x_t, x_0) and the reverse kernel p_theta.

Equations (1)-(6), for any process and any pair of its times s < t, so that a sampler may skip steps; t - 1 and t of a
`Chain` give DDPM's own kernels, and s = 0 is data. Shapes: x [B, ...], s and t [B]; coefficients are float64 [B].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process.sde import Process
from diffusion.tensors import expand_to


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) = N(coef_x_t x_t + coef_x_0 x_0, variance I), float64 [B] each."""

    coef_x_t: Tensor
    coef_x_0: Tensor
    variance: Tensor

    def mean(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """The posterior mean, shape of x_t."""
        return expand_to(self.coef_x_t, x_t) * x_t + expand_to(self.coef_x_0, x_t) * x_0


def diffuse(process: Process, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Equation (4): x_t = alpha_t x_0 + sigma_t eps."""
    log_snr = process.log_snr(t)
    return expand_to(process.alpha_at(log_snr), x_0) * x_0 + expand_to(process.sigma_at(log_snr), x_0) * eps


def transition_variance(process: Process, s: Tensor, t: Tensor) -> Tensor:
    """sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the variance of q(x_t | x_s); beta_t if s = t - 1.

    Since (alpha_t / alpha_s)^2 sigma_s^2 / sigma_t^2 = SNR_t / SNR_s, it is sigma_t^2 (1 - SNR_t / SNR_s).
    """
    log_snr_t = process.log_snr(t)
    return -(process.sigma_at(log_snr_t) ** 2) * torch.expm1(log_snr_t - process.log_snr(s))


def posterior(process: Process, s: Tensor, t: Tensor) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0) for s < t (Ho et al. 2020, equation 7, for any pair of times).

    beta_tilde = sigma_{t|s}^2 sigma_s^2 / sigma_t^2; it is 0 at s = 0, where x_0 is known.
    """
    log_snr_s, log_snr_t = process.log_snr(s), process.log_snr(t)
    alpha_ts = torch.exp(process.log_alpha_at(log_snr_t) - process.log_alpha_at(log_snr_s))
    variance_s, variance_t = process.sigma_at(log_snr_s) ** 2, process.sigma_at(log_snr_t) ** 2
    variance_ts = transition_variance(process, s, t)
    return Posterior(
        coef_x_t=alpha_ts * variance_s / variance_t,
        coef_x_0=process.alpha_at(log_snr_s) * variance_ts / variance_t,
        variance=variance_ts * variance_s / variance_t,
    )


def reverse_variance(process: Process, s: Tensor, t: Tensor, kind: str) -> Tensor:
    """Sigma_theta of equation (6), float64 [B]: sigma_{t|s}^2 (`beta`) or the posterior variance (`beta_tilde`).

    At s = 0 beta_tilde is zero and no density exists: there it takes the value of the chain's second step.
    """
    if kind == "beta":
        return transition_variance(process, s, t)
    first, second = process.step_times()[1:3]
    at_data = s == 0
    return posterior(process, torch.where(at_data, first, s), torch.where(at_data, second, t)).variance


def learned_reverse_variance(process: Process, s: Tensor, t: Tensor, interpolation: Tensor) -> Tensor:
    """Sigma_theta = beta^w beta_tilde^(1 - w), w = (interpolation + 1) / 2 (Nichol & Dhariwal 2021, equation 15).

    Args:
        process: the chain.
        s: [B], before t.
        t: [B].
        interpolation: the second half of the network's output, [B, ...]; -1 is beta_tilde, 1 beta.

    Returns:
        float64, the shape of `interpolation`.
    """
    weight = (interpolation.double() + 1) / 2
    log_beta = torch.log(expand_to(reverse_variance(process, s, t, "beta"), weight))
    log_beta_tilde = torch.log(expand_to(reverse_variance(process, s, t, "beta_tilde"), weight))
    return torch.exp(weight * log_beta + (1 - weight) * log_beta_tilde)
