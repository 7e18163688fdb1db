"""The variances beta_1..beta_T of the discrete chain, equation (2) (Ho et al. 2020, equation 2).

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I),   alphas_cumprod_t = alpha_t^2 = prod_{s<=t} (1 - beta_s)

`linear`, `quadratic`, `scaled_linear` and `sigmoid` state their ends for T = 1000 and are scaled by 1000 / T, so that
the SNR at T hardly depends on T. DDPM's own tables are those of T = 1000.
"""

import math

import torch
from torch import Tensor

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    TableSchedule,
)
from diffusion.process.make_schedule import make_schedule
from diffusion.process.schedule import softplus


def betas(config: DdpmProcess) -> Tensor:
    """The variances beta_1..beta_T of equation (2) that a configuration names.

    Args:
        config: the chain: number of steps T, schedule, and, for schedules without ends of their own, its log-SNR range.

    Returns:
        float64 [T], index 0 is t = 1; with `zero_terminal_snr` the last is 1.
    """
    table = _betas(config)
    return rescale_to_zero_terminal_snr(table) if config.schedule.zero_terminal_snr else table


def _betas(config: DdpmProcess) -> Tensor:
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
        case _:
            return _betas_of_density(config)


def _betas_of_density(config: DdpmProcess) -> Tensor:
    """Betas of a schedule with unbounded log-SNR, cut at log_snr_max and log_snr_min, at T even times between them."""
    schedule = make_schedule(config.schedule, config.log_snr_max, config.log_snr_min)
    first, last = schedule.time(torch.tensor([config.log_snr_max, config.log_snr_min], dtype=torch.float64))
    t = torch.linspace(float(first), float(last), config.num_train_timesteps, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    log_a = torch.cat([torch.zeros(1, dtype=torch.float64), -softplus(-log_snr)])
    return -torch.expm1(torch.diff(log_a))


def rescale_to_zero_terminal_snr(table: Tensor) -> Tensor:
    """Betas whose alpha_t is shifted to 0 at T and scaled to keep alpha_1 (Lin et al. 2024, algorithm 1).

        alpha_t <- (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T)

    Args:
        table: beta_1..beta_T, float64 [T].

    Returns:
        float64 [T]; the last is 1.
    """
    alpha = torch.exp(torch.log1p(-table).cumsum(0) / 2)
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    a = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1 - a[1:] / a[:-1]
