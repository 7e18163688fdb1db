"""The discrete variational bound of equation (7), split into prior, diffusion and reconstruction terms.

-log p_theta(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0 with
  L_T     = KL(q(x_T | x_0) || N(0, I)),
  L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)),
  L_0     = -log p_theta(x_0 | x_1), a Gaussian discretised to the data's 256 levels.

The bound is on the probability of the 8-bit data themselves, so no dequantisation enters. Results are float64 nats per
image; `bits_per_dim` converts.
"""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.chain import ReverseVariance, diffuse, posterior, reverse_variance
from diffusion.denoiser import Denoiser
from diffusion.schedule import Schedule, rows


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats per image to bits per dimension."""
    return nats / (math.log(2) * dimensions)


def prior_kl(schedule: Schedule, x_0: Tensor) -> Tensor:
    """L_T of each row, exact: 1/2 sum(alpha_T^2 x_0^2 + sigma_T^2 - 1 - log sigma_T^2), float64 [B]."""
    alpha, variance = schedule.alpha[-1], schedule.sigma[-1] ** 2
    x_0 = x_0.to(torch.float64)
    return 0.5 * (alpha**2 * x_0**2 + variance - 1 - torch.log(variance)).flatten(1).sum(1)


@dataclass(frozen=True)
class ReverseKernel:
    """p_theta(x_{t-1} | x_t) as the bound sees it.

    Attributes:
        denoiser: the model.
        variance: which Sigma_theta.
        clip_x0: hold the estimate of x_0 within [-1, 1]; part of the model that is scored.
    """

    denoiser: Denoiser
    variance: ReverseVariance = "beta"
    clip_x0: bool = True

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 from which mu_theta is made."""
        estimate = self.denoiser.x0(x_t, t)
        return estimate.clamp(-1, 1) if self.clip_x0 else estimate

    def diffusion_kl(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """L_{t-1} at x_t = alpha_t x_0 + sigma_t eps, for t int64 [B] in 2..T; float64 [B].

        KL(N(mu, v) || N(mu_theta, V)) = 1/2 sum(log(V / v) - 1 + v / V + (mu - mu_theta)^2 / V).
        """
        schedule = self.denoiser.schedule
        exact = posterior(schedule, t - 1, t)
        variance = reverse_variance(schedule, t - 1, t, self.variance)
        x0_error = (x_0 - self.x0(diffuse(schedule, x_0, t, eps), t)).to(torch.float64)
        mean_error = rows(exact.coef_x_0, x0_error) * x0_error
        dimensions = x_0[0].numel()
        ratio = exact.variance / variance
        return 0.5 * (dimensions * (ratio - 1 - torch.log(ratio)) + mean_error.square().flatten(1).sum(1) / variance)

    def reconstruction_nll(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """L_0 at x_1 = alpha_1 x_0 + sigma_1 eps, for data on the 256-level grid of [-1, 1]; float64 [B]."""
        t = torch.ones(len(x_0), dtype=torch.int64)
        mean = self.x0(diffuse(self.denoiser.schedule, x_0, t, eps), t)
        variance = reverse_variance(self.denoiser.schedule, t - 1, t, self.variance)
        log_p = discretised_gaussian_log_prob(x_0, mean, rows(variance.sqrt(), mean.to(torch.float64)))
        return -log_p.flatten(1).sum(1)


def discretised_gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of N(mean, std^2) integrated over the bin of each x on the 256-level grid of [-1, 1]; float64, shape of x.

    Bins are 2 / 255 wide around their level; the first and last are open, so the 256 bins sum to one.
    """
    x, mean = x.to(torch.float64), mean.to(torch.float64)
    half_bin = 1 / 255
    upper = torch.where(x > 1 - half_bin, math.inf, (x + half_bin - mean) / std)
    lower = torch.where(x < -1 + half_bin, -math.inf, (x - half_bin - mean) / std)
    mirrored = lower > 0  # work in the lower tail, where log_ndtr keeps its precision
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


@dataclass(frozen=True)
class Vlb:
    """The three terms of the bound per image, float64 nats [B]."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """prior + diffusion + reconstruction."""
        return self.prior + self.diffusion + self.reconstruction


def estimate_vlb(kernel: ReverseKernel, x_0: Tensor, t: Tensor, eps: Tensor) -> Vlb:
    """An unbiased estimate of the bound of each row of x_0 [B, C, H, W].

    Args:
        kernel: the model.
        x_0: data on the 256-level grid of [-1, 1].
        t: steps in 2..T, int64 [B, K]; an image's diffusion term is (T - 1) times the mean over its K steps.
        eps: noise [B, K + 1, C, H, W]; the last draw is for the reconstruction term.
    """
    draws = t.shape[1]
    repeated = x_0.repeat_interleave(draws, dim=0)
    kl = kernel.diffusion_kl(repeated, t.flatten(), eps[:, :-1].flatten(0, 1)).reshape(t.shape)
    return Vlb(
        prior=prior_kl(kernel.denoiser.schedule, x_0),
        diffusion=(kernel.denoiser.schedule.num_steps - 1) * kl.mean(1),
        reconstruction=kernel.reconstruction_nll(x_0, eps[:, -1]),
    )
