"""Forward processes: how noise is added to data, in discrete and in continuous time.

    x_t = alpha_t x_0 + sigma_t eps,   dx = f(t) x dt + g(t) dw          equations (4) and (9)

All are linear, so with log_snr = log(alpha_t^2 / sigma_t^2)

    f = d log(alpha_t) / dt,   g^2 = -sigma_t^2 d log_snr / dt.

A process is a schedule (log-SNR over time, `schedule.py`) and a rule that gives alpha and sigma as functions of
log-SNR; solvers and likelihoods need no more. Times t are float64 or int64 tensors on the CPU; t = 0 is data. Methods
ending in `_at` take log-SNR, the others t.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusion.config import DdpmProcess, ProcessConfig, ProcessOptions, SubVpProcess, VeProcess, VpProcess
from diffusion.process.betas import betas
from diffusion.process.make_schedule import make_schedule
from diffusion.process.schedule import Schedule, Table, softplus
from diffusion.tensors import to_floats


class Process(ABC):
    """A linear forward process: alpha_t, sigma_t, f(t) and g(t)^2 of equations (4) and (9).

    The base class implements the variance-preserving rule alpha^2 = sigmoid(log_snr), sigma^2 = 1 - alpha^2. Arguments
    and results are float64 tensors of equal shape.

    Attributes:
        num_steps: T, the number of steps of the discrete chain; network times are on the scale of 0..T.
        t_min: time of the least noise that networks see; t = 0 itself is data.
        t_max: time of the most noise, from which generation starts.
        prior_std: standard deviation p of the prior p(x_T) = N(0, p^2 I).
        reverse_variance: Sigma_theta of equation (6): `beta`, `beta_tilde` or `learned`.
        schedule: log-SNR of the variance-preserving process over t in [0, 1].
    """

    num_steps: int
    t_min: float
    t_max: float
    prior_std: float = 1.0
    reverse_variance: str = "beta"
    schedule: Schedule

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), float64, the shape of t; +inf at t = 0."""

    @abstractmethod
    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative d log_snr / dt for t > 0, negative."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: the t in [t_min, t_max] with this log-SNR, clamped to the ends."""

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """log(alpha) as a function of log-SNR; variance-preserving: log(sigmoid(log_snr)) / 2."""
        return logsigmoid(log_snr) / 2

    def dlogalpha_dlogsnr_at(self, log_snr: Tensor) -> Tensor:
        """d log(alpha) / d log_snr as a function of log-SNR; variance-preserving: sigma^2 / 2."""
        return torch.sigmoid(-log_snr) / 2

    def alpha_at(self, log_snr: Tensor) -> Tensor:
        """alpha, the coefficient of x_0, as a function of log-SNR."""
        return torch.exp(self.log_alpha_at(log_snr))

    def sigma_at(self, log_snr: Tensor) -> Tensor:
        """sigma = alpha exp(-log_snr / 2) as a function of log-SNR; variance-preserving: sqrt(sigmoid(-log_snr))."""
        return torch.exp(logsigmoid(-log_snr) / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t, the coefficient of x_0 in equation (4), float64."""
        return self.alpha_at(self.log_snr(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t, the coefficient of eps in equation (4), float64."""
        return self.sigma_at(self.log_snr(t))

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log(alpha_t) / dt of equation (9), for t > 0; -beta(t) / 2 in the VP SDE."""
        return self.dlogalpha_dlogsnr_at(self.log_snr(t)) * self.dlogsnr_dt(t)

    def squared_diffusion(self, t: Tensor) -> Tensor:
        """g(t)^2 = -sigma_t^2 d log_snr / dt of equation (9), for t > 0; beta(t) in the VP SDE."""
        return -(self.sigma(t) ** 2) * self.dlogsnr_dt(t)

    def network_time(self, t: Tensor) -> Tensor:
        """The time that the network is conditioned on, float64 on the scale of 0..T."""
        return self.num_steps * self.schedule.network_time_fraction(t)

    def time_from_fraction(self, fraction: Tensor) -> Tensor:
        """The time a fraction u of the way from t_min to t_max, float64.

        Args:
            fraction: u in [0, 1); uniform u makes t uniform on [t_min, t_max], and in a chain uniform on 1..T.
        """
        return self.t_min + fraction * (self.t_max - self.t_min)

    def step_times(self) -> Tensor:
        """The times of the discrete chain, float64 [T + 1]: t = 0, then T even times from t_min to t_max."""
        times = torch.linspace(self.t_min, self.t_max, self.num_steps, dtype=torch.float64)
        return torch.cat([torch.zeros(1, dtype=torch.float64), times])


class Chain(Process):
    """DDPM's discrete chain, equations (1)-(4) (Ho et al. 2020): t = 0..T counts its steps.

        alpha_t^2 = prod_{s<=t} (1 - beta_s),   sigma_t^2 = 1 - alpha_t^2

    Between whole steps log(alpha_t^2) is interpolated linearly, so that solvers may use any t in [0, T]. Networks are
    given t - 1, as in diffusers.

    Args:
        betas: beta_1..beta_T, [T]; index 0 is t = 1.
        reverse_variance: Sigma_theta of equation (6): `beta`, `beta_tilde` or `learned`.

    Raises:
        ValueError: a beta outside (0, 1); the last may be 1, a terminal SNR of zero.
    """

    def __init__(self, betas: Tensor, reverse_variance: str = "beta") -> None:
        betas = betas.to(torch.float64)
        if not bool(((betas[:-1] > 0) & (betas[:-1] < 1)).all() and 0 < betas[-1] <= 1):
            raise ValueError(
                f"process.schedule: betas must lie in (0, 1), so that log-SNR falls; got {float(betas.min()):.4g} to "
                f"{float(betas.max()):.4g}: change the schedule's ends, or bring process.log_snr_max and log_snr_min "
                "closer together"
            )
        self.num_steps = len(betas)
        self.t_min, self.t_max = 1.0, float(self.num_steps)
        self.reverse_variance = reverse_variance
        table = Table(torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)]))
        self.schedule = self._table = table

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR of the table at times in steps, interpolated between them; +inf at t = 0."""
        return self._table.log_snr_at(t)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """d log_snr / dt per step; at a whole step, that of the step ending there."""
        return self._table.dlogsnr_dstep(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, in steps, clamped to [1, T]."""
        return self._table.step(log_snr).clamp(self.t_min, self.t_max)

    def network_time(self, t: Tensor) -> Tensor:
        """t - 1: the index of step t in DDPM's arrays."""
        return t - 1

    def time_from_fraction(self, fraction: Tensor) -> Tensor:
        """floor(T u) + 1 for u in [0, 1): every step of 1..T is equally likely under uniform u."""
        return torch.floor(fraction * self.num_steps) + 1

    def step_times(self) -> Tensor:
        """The whole steps 0, 1, ..., T, float64 [T + 1]."""
        return torch.arange(self.num_steps + 1, dtype=torch.float64)


class Continuous(Process):
    """A process in continuous time, from log_snr_max at t_min to log_snr_min at t_max, 0 < t_min < t_max <= 1.

    Args:
        config: number of steps of the discrete chain and the log-SNR range.
        schedule: log-SNR of the variance-preserving process over t in [0, 1]; cut at the ends of the range.

    Raises:
        ValueError: log-SNR is not finite, or does not fall, between the two ends.
    """

    def __init__(self, config: ProcessOptions, schedule: Schedule) -> None:
        self.num_steps = config.num_train_timesteps
        self.schedule = schedule
        ends = torch.tensor([config.log_snr_max, config.log_snr_min], dtype=torch.float64)
        with torch.no_grad():
            self.t_min, self.t_max = (float(t) for t in schedule.time(self._schedule_log_snr(ends)))
            self._check_falling()

    def _check_falling(self) -> None:
        log_snr = self.log_snr(self.step_times()[1:])
        if not bool(log_snr.isfinite().all() and (log_snr.diff() < 0).all()):
            raise ValueError(
                f"process.schedule: log-SNR must fall, finite; over t = {self.t_min:.4g} to {self.t_max:.4g} it "
                f"goes from {float(log_snr[0]):.4g} to {float(log_snr[-1]):.4g}: bring process.log_snr_max and "
                "log_snr_min closer together, or widen the schedule"
            )

    def _own_log_snr(self, log_snr: Tensor) -> Tensor:
        """This process's log-SNR, given that of the variance-preserving process with the same alpha."""
        return log_snr

    def _schedule_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `_own_log_snr`."""
        return log_snr

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR of this process from the schedule; +inf at t = 0."""
        t = t.double()
        return torch.where(t > 0, self._own_log_snr(self.schedule.log_snr(t.clamp(min=1e-300))), math.inf)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """d log_snr / dt from the schedule."""
        return self.schedule.dlogsnr_dt(t.double())

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, clamped to [t_min, t_max]."""
        return self.schedule.time(self._schedule_log_snr(log_snr)).clamp(self.t_min, self.t_max)


class Vp(Continuous):
    """The variance-preserving SDE, equation (12) (Song et al. 2021, equation 11).

        dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw,   alpha_t^2 + sigma_t^2 = 1,   alpha_t^2 = exp(-integral of beta)

    It is the limit of DDPM's chain as the number of steps grows.
    """


class SubVp(Continuous):
    """The sub-VP SDE (Song et al. 2021, equations 12 and 29): alpha_t of the VP SDE and a smaller variance.

        f = -beta(t) / 2,   g^2 = beta(t) (1 - alpha_t^4),   sigma_t = 1 - alpha_t^2, the square of the VP SDE's

    With a = alpha_t^2, SNR = a / (1 - a)^2.
    """

    def _own_log_snr(self, log_snr: Tensor) -> Tensor:
        """log(a) - 2 log(1 - a), given log(a / (1 - a))."""
        return log_snr + softplus(log_snr)

    def _schedule_log_snr(self, log_snr: Tensor) -> Tensor:
        return sub_vp_to_vp(log_snr)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """(1 + a) times that of the schedule."""
        return super().dlogsnr_dt(t) * (1 + torch.sigmoid(self.schedule.log_snr(t.double())))

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """log(a) / 2, where a is the smaller root of a / (1 - a)^2 = SNR."""
        inverse = torch.exp(-log_snr)
        return -torch.log1p(inverse / 2 + torch.sqrt(inverse + inverse**2 / 4)) / 2

    def dlogalpha_dlogsnr_at(self, log_snr: Tensor) -> Tensor:
        """d log(alpha) / d log_snr = (1 - a) / (2 (1 + a))."""
        log_a = 2 * self.log_alpha_at(log_snr)
        return -torch.expm1(log_a) / (2 * (1 + torch.exp(log_a)))

    def sigma_at(self, log_snr: Tensor) -> Tensor:
        """alpha exp(-log_snr / 2), equal to 1 - a."""
        return torch.exp(self.log_alpha_at(log_snr) - log_snr / 2)


def sub_vp_to_vp(log_snr: Tensor) -> Tensor:
    """The VP SDE's log(a / (1 - a)), given the sub-VP SDE's log(a / (1 - a)^2); float64, any shape."""
    inverse = torch.exp(-log_snr)
    return (log_snr - torch.log1p(inverse / 2 + torch.sqrt(inverse + inverse**2 / 4))) / 2


class Ve(Continuous):
    """The variance-exploding SDE (Song et al. 2021, equation 9): noise is added and data are not scaled.

        alpha_t = 1,   f = 0,   g^2 = d sigma_t^2 / dt,   sigma_t = exp(-log_snr / 2) = edm_sigma

    The prior is N(0, sigma_T^2 I), T standing for t_max.
    """

    def __init__(self, config: ProcessOptions, schedule: Schedule) -> None:
        super().__init__(config, schedule)
        with torch.no_grad():
            self.prior_std = float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """0, since alpha = 1."""
        return torch.zeros_like(log_snr)

    def dlogalpha_dlogsnr_at(self, log_snr: Tensor) -> Tensor:
        """0, since alpha = 1."""
        return torch.zeros_like(log_snr)

    def sigma_at(self, log_snr: Tensor) -> Tensor:
        """exp(-log_snr / 2), the edm_sigma."""
        return torch.exp(-log_snr / 2)


CONTINUOUS: dict[type[ProcessOptions], type[Continuous]] = {VpProcess: Vp, SubVpProcess: SubVp, VeProcess: Ve}


def make_process(config: ProcessConfig) -> Process:
    """The process that a configuration names.

    Args:
        config: kind, number of steps, schedule, log-SNR range and reverse variance.

    Raises:
        ValueError: betas outside (0, 1), or a log-SNR that does not fall.
    """
    if isinstance(config, DdpmProcess):
        return Chain(betas(config), config.reverse_variance)
    ends = torch.tensor([config.log_snr_max, config.log_snr_min], dtype=torch.float64)
    if isinstance(config, SubVpProcess):
        ends = sub_vp_to_vp(ends)
    process = CONTINUOUS[type(config)](config, make_schedule(config.schedule, *to_floats(ends)))
    process.reverse_variance = config.reverse_variance
    return process
