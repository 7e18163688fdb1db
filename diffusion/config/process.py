"""Configuration of the forward process: its kind, its noise schedule and the variance of its reverse kernel.

Formulas and references are stated in full where they are computed, in `diffusion/process/`. log_snr is
log(alpha_t^2 / sigma_t^2), a natural logarithm; T is `num_train_timesteps`.
"""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffusion.config.base import Config, Positive


class ScheduleOptions(Config):
    """The fields that every noise schedule has.

    Attributes:
        kind: which schedule.
        zero_terminal_snr: shift and scale alpha_t of a chain so that alpha_T = 0 and x_T is pure noise (Lin et al.
            2024, algorithm 1); refused in continuous time.
    """

    kind: str
    zero_terminal_snr: bool = False


class BetaRange(ScheduleOptions):
    """Schedules given by betas between two ends.

    The ends are stated for T = 1000 and scaled by 1000 / T, so that the SNR at the end does not depend on T. In
    continuous time beta(t) of equation (12) runs between 1000 times the ends.

    Attributes:
        beta_start: the first beta at T = 1000, in (0, 1).
        beta_end: the last beta at T = 1000, in (0, 1).
    """

    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02


class LinearSchedule(BetaRange):
    """beta_t = beta_start + (beta_end - beta_start) (t - 1) / (T - 1): DDPM's (Ho et al. 2020, section 4)."""

    kind: Literal["linear"] = "linear"


class QuadraticSchedule(BetaRange):
    """sqrt(beta_t) linear in t, between DDPM's ends; `quad` in the code of Ho et al. (2020)."""

    kind: Literal["quadratic"] = "quadratic"


class ScaledLinearSchedule(BetaRange):
    """sqrt(beta_t) linear in t, between latent diffusion's ends (Rombach et al. 2022).

    It is `quadratic` with other defaults.
    """

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012


class SigmoidSchedule(BetaRange):
    """beta_t = beta_start + (beta_end - beta_start) sigmoid(u), u linear in t from -6 to 6 (Xu et al. 2022)."""

    kind: Literal["sigmoid"] = "sigmoid"


class CosineSchedule(ScheduleOptions):
    """alphas_cumprod(t) = cos^2(angle(t)) / cos^2(angle(0)) (Nichol & Dhariwal 2021, equation 17).

    angle(t) = (t / T + s) / (1 + s) pi / 2.

    Attributes:
        s: offset that keeps the first betas from being too small, in (0, 1].
        max_beta: largest beta of a chain, in (0, 1); continuous time does without.
    """

    kind: Literal["cosine"] = "cosine"
    s: Annotated[float, Field(gt=0, le=1)] = 0.008
    max_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


class LaplaceSchedule(ScheduleOptions):
    """log-SNR Laplace distributed under uniform t (Hang et al. 2024).

    log_snr = mean - scale sgn(1/2 - t) log(1 - |1 - 2 t|), cut at the process's log_snr_max and log_snr_min.

    Attributes:
        mean: location of the distribution, a log-SNR.
        scale: its scale b, above 0; the standard deviation is sqrt(2) b.
    """

    kind: Literal["laplace"] = "laplace"
    mean: float = 0.0
    scale: Positive = 0.5


class EdmSchedule(ScheduleOptions):
    """log(edm_sigma) distributed as N(p_mean, p_std^2) under uniform t (Karras et al. 2022, table 1).

    edm_sigma = sigma_t / alpha_t = exp(-log_snr / 2), cut at the process's log_snr_max and log_snr_min.

    Attributes:
        p_mean: mean of log(edm_sigma).
        p_std: standard deviation of log(edm_sigma), above 0.
    """

    kind: Literal["edm"] = "edm"
    p_mean: float = -1.2
    p_std: Positive = 1.2


class GeometricSchedule(ScheduleOptions):
    """log-SNR linear in t, between the process's log_snr_max and log_snr_min.

    edm_sigma = sigma_min (sigma_max / sigma_min)^t is geometric: the VE process of Song et al. (2021).
    """

    kind: Literal["geometric"] = "geometric"


class LearnedSchedule(ScheduleOptions):
    """log-SNR as a monotone network of t, trained to lower the variance of the bound's estimate (Kingma et al. 2021).

    It runs between the process's log_snr_max and log_snr_min, in continuous time only.

    Attributes:
        width: number of sigmoids in the network.
    """

    kind: Literal["learned"] = "learned"
    width: Annotated[int, Field(ge=1, le=4096)] = 64


class TableSchedule(ScheduleOptions):
    """A table of betas given by the user.

    Attributes:
        betas: beta_1..beta_T of equation (2), one for each step of the chain, each in (0, 1).
    """

    kind: Literal["table"] = "table"
    betas: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)]


ScheduleConfig = Annotated[
    LinearSchedule
    | QuadraticSchedule
    | ScaledLinearSchedule
    | SigmoidSchedule
    | CosineSchedule
    | LaplaceSchedule
    | EdmSchedule
    | GeometricSchedule
    | LearnedSchedule
    | TableSchedule,
    Field(discriminator="kind"),
]


class ProcessOptions(Config):
    """The fields that every forward process has.

    The log-SNR ends cut schedules that are unbounded or not tied to T: all in continuous time, and `laplace`, `edm` and
    `geometric` in a chain. The ends of other chains follow from their betas.

    Attributes:
        kind: which process.
        num_train_timesteps: T, the number of steps of the discrete chain, at least 2.
        log_snr_max: log-SNR at the least noise.
        log_snr_min: log-SNR at the most noise, below log_snr_max.
    """

    kind: str
    num_train_timesteps: Annotated[int, Field(ge=2, le=10**6)] = 1000
    log_snr_max: float = 13.3
    log_snr_min: float = -13.3

    def _check(self, schedule: ScheduleConfig) -> None:
        """Refuse log-SNR ends in the wrong order, and a table whose length is not the number of steps."""
        steps = self.num_train_timesteps
        if self.log_snr_min >= self.log_snr_max:
            raise ValueError(
                f"log_snr_min = {self.log_snr_min:g} is not below log_snr_max = {self.log_snr_max:g}; log-SNR must fall"
            )
        if isinstance(schedule, TableSchedule) and len(schedule.betas) != steps:
            raise ValueError(
                f"schedule.betas has {len(schedule.betas)} entries; allowed: one per step, "
                f"num_train_timesteps = {steps}"
            )


class DdpmProcess(ProcessOptions):
    """DDPM's chain of equations (1)-(4), t = 1..T, and its reverse variance, equation (6) (Ho et al. 2020).

    Attributes:
        schedule: any but `learned`.
        reverse_variance: Sigma_theta: the forward variance `beta`, the posterior variance `beta_tilde`, or an
            interpolation of the two that the network gives, `learned` (Nichol & Dhariwal 2021).

    Raises:
        ValueError: a schedule that does not fit the number of steps, or that needs continuous time.
    """

    kind: Literal["ddpm"] = "ddpm"
    schedule: ScheduleConfig = CosineSchedule()
    reverse_variance: Literal["beta", "beta_tilde", "learned"] = "beta"

    @model_validator(mode="after")
    def _schedule_fits(self) -> "DdpmProcess":
        schedule, steps = self.schedule, self.num_train_timesteps
        self._check(schedule)
        if isinstance(schedule, LearnedSchedule):
            raise ValueError("schedule.kind = learned needs continuous time; use process.kind = vp, sub_vp or ve")
        if isinstance(schedule, BetaRange):
            largest = max(schedule.beta_start, schedule.beta_end) * 1000 / steps
            if largest >= 1:
                raise ValueError(
                    f"num_train_timesteps = {steps} scales the {schedule.kind} schedule's largest beta to "
                    f"{largest:.4g}; betas must be below 1: use more steps or a smaller beta_end"
                )
        return self


class ContinuousOptions(ProcessOptions):
    """The fields of every process in continuous time.

    t runs over (0, 1], and networks are given num_train_timesteps x t.

    Attributes:
        reverse_variance: Sigma_theta of equation (6) where the process is used as a chain of T steps.
    """

    reverse_variance: Literal["beta", "beta_tilde"] = "beta"

    def _check(self, schedule: ScheduleConfig) -> None:
        super()._check(schedule)
        if schedule.zero_terminal_snr:
            raise ValueError(
                "schedule.zero_terminal_snr = true: the SDE is singular there; use process.kind = ddpm, "
                "or a lower process.log_snr_min"
            )


class VpProcess(ContinuousOptions):
    """The variance-preserving SDE of equation (12) (Song et al. 2021, equation 11).

    dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw; alpha_t^2 + sigma_t^2 = 1.

    Raises:
        ValueError: a terminal SNR of zero, or a table that does not fit the number of steps.
    """

    kind: Literal["vp"] = "vp"
    schedule: ScheduleConfig = LinearSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "VpProcess":
        self._check(self.schedule)
        return self


class SubVpProcess(ContinuousOptions):
    """The sub-VP SDE (Song et al. 2021, equation 12): alpha_t of the VP SDE, sigma_t = 1 - alpha_t^2.

    Raises:
        ValueError: a terminal SNR of zero, or a table that does not fit the number of steps.
    """

    kind: Literal["sub_vp"] = "sub_vp"
    schedule: ScheduleConfig = LinearSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "SubVpProcess":
        self._check(self.schedule)
        return self


class VeProcess(ContinuousOptions):
    """The variance-exploding SDE (Song et al. 2021, equation 9): alpha_t = 1, dx = sqrt(d sigma_t^2 / dt) dw.

    The default ends are sigma = 0.01 and 50, as in the paper.

    Raises:
        ValueError: a terminal SNR of zero, or a table that does not fit the number of steps.
    """

    kind: Literal["ve"] = "ve"
    log_snr_max: float = 9.210340371976182
    log_snr_min: float = -7.824046010856292
    schedule: ScheduleConfig = GeometricSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "VeProcess":
        self._check(self.schedule)
        return self


ProcessConfig = Annotated[DdpmProcess | VpProcess | SubVpProcess | VeProcess, Field(discriminator="kind")]
