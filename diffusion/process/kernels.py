"""The Gaussian kernels of a diffusion chain: forward q(x_t | x_s), posterior q(x_s | x_t, x_0) and reverse variances.

Equations (1)-(6), for any process and any pair of its times s < t, so that a sampler may skip steps. s = t - 1 in a
`Chain` gives DDPM's own kernels, and s = 0 is data. Shapes: x [B, ...]; s and t [B], on the CPU; coefficients and
variances are float64 [B].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process.sde import Process
from diffusion.tensors import expand_to


@dataclass(frozen=True)
class Posterior:
    """The posterior q(x_s | x_t, x_0) = N(coef_x_t x_t + coef_x_0 x_0, variance I) for s < t.

    Attributes:
        coef_x_t: coefficient of x_t in the mean, float64 [B].
        coef_x_0: coefficient of x_0 in the mean, float64 [B].
        variance: beta_tilde, float64 [B]; 0 where s = 0.
    """

    coef_x_t: Tensor
    coef_x_0: Tensor
    variance: Tensor

    def mean(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """The posterior mean coef_x_t x_t + coef_x_0 x_0, in the shape and dtype of x_t."""
        return expand_to(self.coef_x_t, x_t) * x_t + expand_to(self.coef_x_0, x_t) * x_0


def diffuse(process: Process, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Draw from q(x_t | x_0), equation (4): x_t = alpha_t x_0 + sigma_t eps.

    Args:
        process: gives alpha_t and sigma_t.
        x_0: data [B, ...].
        t: times [B].
        eps: standard normal noise, the shape of x_0.

    Returns:
        x_t, the shape and dtype of x_0.
    """
    log_snr = process.log_snr(t)
    return expand_to(process.alpha_at(log_snr), x_0) * x_0 + expand_to(process.sigma_at(log_snr), x_0) * eps


def transition_variance(process: Process, s: Tensor, t: Tensor) -> Tensor:
    """The variance of q(x_t | x_s), s < t: sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, float64 [B].

    It is beta_t for s = t - 1. Computed as sigma_t^2 (1 - SNR_t / SNR_s), which does not cancel (Kingma et al. 2021).
    """
    log_snr_t = process.log_snr(t)
    return -(process.sigma_at(log_snr_t) ** 2) * torch.expm1(log_snr_t - process.log_snr(s))


def posterior(process: Process, s: Tensor, t: Tensor) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0) for s < t (Ho et al. 2020, equations 6 and 7, for any pair of times).

        coef_x_t = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2
        coef_x_0 = alpha_s sigma_{t|s}^2 / sigma_t^2
        variance = beta_tilde = sigma_{t|s}^2 sigma_s^2 / sigma_t^2

    At s = 0, where x_0 is known, the mean is x_0 and the variance 0.
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
    """A fixed Sigma_theta of equation (6), float64 [B].

    Args:
        process: the forward process.
        s: times to step to [B].
        t: times to step from [B], s < t.
        kind: `beta` for the forward variance sigma_{t|s}^2, exact if x_0 ~ N(0, I); `beta_tilde` for the posterior
            variance, exact if x_0 is one fixed point (Ho et al. 2020, section 3.2).

    Returns:
        The variance. `beta_tilde` would be 0 at s = 0, where the bound needs a density: there it is that of the chain's
        second step.
    """
    if kind == "beta":
        return transition_variance(process, s, t)
    first, second = process.step_times()[1:3]
    at_data = s == 0
    return posterior(process, torch.where(at_data, first, s), torch.where(at_data, second, t)).variance


def learned_reverse_variance(process: Process, s: Tensor, t: Tensor, interpolation: Tensor) -> Tensor:
    """The learned Sigma_theta = beta^w beta_tilde^(1 - w) (Nichol & Dhariwal 2021, equation 15).

    Args:
        process: the forward process.
        s: times to step to [B].
        t: times to step from [B], s < t.
        interpolation: the second half of the network's output channels, [B, ...]; w = (interpolation + 1) / 2, so -1 is
            beta_tilde and 1 is beta. Values beyond are not clamped.

    Returns:
        The variance of each element, float64, the shape of `interpolation`.
    """
    weight = (interpolation.double() + 1) / 2
    log_beta = torch.log(expand_to(reverse_variance(process, s, t, "beta"), weight))
    log_beta_tilde = torch.log(expand_to(reverse_variance(process, s, t, "beta_tilde"), weight))
    return torch.exp(weight * log_beta + (1 - weight) * log_beta_tilde)
