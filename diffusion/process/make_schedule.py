"""Builds the continuous-time schedule that a configuration names."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch

from diffusion.config import (
    CosineSchedule,
    EdmSchedule,
    GeometricSchedule,
    LaplaceSchedule,
    LearnedSchedule,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
    ScheduleConfig,
    SigmoidSchedule,
    TableSchedule,
)
from diffusion.process.schedule import (
    Cosine,
    LaplaceQuantile,
    LinearBeta,
    LinearLogSnr,
    LogNormalQuantile,
    QuadraticBeta,
    Schedule,
    SigmoidBeta,
    Table,
)

BetaSchedules = (
    LinearSchedule | QuadraticSchedule | ScaledLinearSchedule | SigmoidSchedule | CosineSchedule | TableSchedule
)


def make_schedule(config: ScheduleConfig, log_snr_max: float, log_snr_min: float) -> Schedule:
    """The continuous-time schedule that a configuration names.

    Args:
        config: kind and settings of the schedule.
        log_snr_max: log-SNR at the start of a schedule that runs between two ends (`geometric`, `learned`); others
            ignore it.
        log_snr_min: log-SNR at the end of such a schedule.

    Returns:
        The schedule of the variance-preserving process over t in [0, 1].
    """
    match config:
        case LaplaceSchedule(mean=mean, scale=scale):
            return LaplaceQuantile(mean, scale)
        case EdmSchedule(p_mean=p_mean, p_std=p_std):
            return LogNormalQuantile(p_mean, p_std)
        case GeometricSchedule():
            return LinearLogSnr(log_snr_max, log_snr_min)
        case LearnedSchedule(width=width):
            from diffusion.process.learned_schedule import LearnedLogSnr

            return LearnedLogSnr(width, log_snr_max, log_snr_min)
        case _:
            return _schedule_of_betas(config)


def _schedule_of_betas(config: BetaSchedules) -> Schedule:
    """The limit of DDPM's betas as T grows: beta(t) = T beta_i at t = i / T; a `table` keeps its own steps."""
    match config:
        case LinearSchedule(beta_start=start, beta_end=end):
            return LinearBeta(1000 * start, 1000 * end)
        case QuadraticSchedule(beta_start=start, beta_end=end) | ScaledLinearSchedule(beta_start=start, beta_end=end):
            return QuadraticBeta(1000 * start, 1000 * end)
        case SigmoidSchedule(beta_start=start, beta_end=end):
            return SigmoidBeta(1000 * start, 1000 * end)
        case CosineSchedule(s=s):
            return Cosine(s)
        case _:  # a table
            log_a = torch.log1p(-torch.tensor(config.betas, dtype=torch.float64)).cumsum(0)
            return Table(torch.cat([torch.zeros(1, dtype=torch.float64), log_a]))
