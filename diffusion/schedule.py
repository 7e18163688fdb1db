"""Noise schedules of the discrete chain: equations (2)-(4) as float64 tables over t = 0..T.

A table is indexed by t itself: t = 0 is data (alpha = 1, sigma = 0, log_snr = +inf) and t = T is noise. DDPM's own
"alpha" (1 - beta) appears only as `betas`; `alpha` here is the coefficient of x_0, alpha_t^2 = alphas_cumprod.
"""

import math

import torch
from torch import Tensor

from diffusion.config import (
    CosineSchedule,
    LinearSchedule,
    ProcessConfig,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    TableSchedule,
)


def betas(config: ProcessConfig) -> Tensor:
    """The variances beta_1..beta_T of equation (2).

    Returns:
        float64 tensor [T]; index 0 is t = 1.
    """
    steps = config.num_train_timesteps
    scale = 1000 / steps
    match config.schedule:
        case LinearSchedule(beta_start=start, beta_end=end):
            return torch.linspace(scale * start, scale * end, steps, dtype=torch.float64)
        case QuadraticSchedule(beta_start=start, beta_end=end) | ScaledLinearSchedule(beta_start=start, beta_end=end):
            return scale * torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        case SigmoidSchedule(beta_start=start, beta_end=end):
            rise = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
            return scale * (start + (end - start) * rise)
        case TableSchedule(betas=table):
            return torch.tensor(table, dtype=torch.float64)
        case CosineSchedule(s=s, max_beta=max_beta):
            t = torch.arange(steps + 1, dtype=torch.float64) / steps
            alphas_cumprod = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
            return torch.clamp(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max=max_beta)


class Schedule:
    """The tables of x_t = alpha_t x_0 + sigma_t eps (equation 4) for a discrete chain of T steps.

    Attributes:
        num_steps: T.
        log_alpha: log alpha_t, float64 [T + 1].
        alpha: alpha_t, float64 [T + 1]; alpha_t^2 is `alphas_cumprod`.
        sigma: sigma_t = sqrt(1 - alpha_t^2), float64 [T + 1].
        log_snr: log(alpha_t^2 / sigma_t^2), float64 [T + 1], strictly decreasing from +inf.

    Raises:
        ValueError: a beta outside (0, 1).
    """

    def __init__(self, betas: Tensor) -> None:
        """Build the tables from betas [T] (index 0 is t = 1)."""
        betas = betas.to(torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"betas must lie in (0, 1); got {float(betas.min()):.4g} to {float(betas.max()):.4g}")
        zero = torch.zeros(1, dtype=torch.float64)
        log_alphas_cumprod = torch.cat([zero, torch.log1p(-betas).cumsum(0)])
        self.num_steps = len(betas)
        self.log_alpha = log_alphas_cumprod / 2
        self.alpha = torch.exp(self.log_alpha)
        self.sigma = torch.sqrt(-torch.expm1(log_alphas_cumprod))
        self.log_snr = log_alphas_cumprod - torch.log(-torch.expm1(log_alphas_cumprod))

    @classmethod
    def from_config(cls, config: ProcessConfig) -> "Schedule":
        """The schedule that a process configuration names."""
        return cls(betas(config))

    def transition_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """sigma_{t|s}^2 = 1 - alpha_t^2 / alpha_s^2, the variance of q(x_t | x_s) for s < t; beta_t when s = t - 1."""
        return -torch.expm1(2 * (self.log_alpha[t] - self.log_alpha[s]))


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Shape per-row values [B] for broadcasting against `like` [B, ...], in its dtype and on its device."""
    return values.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))
