"""The forward process: its noise schedule, its kind, and the variance of its reverse kernel."""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffusion.config.base import Config, Count, Positive


class ScheduleOptions(Config):
    """What every noise schedule has.

    `zero_terminal_snr` shifts and scales alpha_t of a chain so that x_T is pure noise (Lin et al., 2024).
    """

    kind: str
    zero_terminal_snr: bool = False


class BetaRange(ScheduleOptions):
    """Betas between two ends, given for T = 1000 and scaled by 1000 / T: the SNR at the end does not depend on T."""

    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02


class LinearSchedule(BetaRange):
    """DDPM's linear betas."""

    kind: Literal["linear"] = "linear"


class QuadraticSchedule(BetaRange):
    """DDPM's quadratic betas: linear in sqrt(beta)."""

    kind: Literal["quadratic"] = "quadratic"


class ScaledLinearSchedule(BetaRange):
    """Latent diffusion's betas: those of `quadratic` with other ends (Rombach et al., 2022)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012


class SigmoidSchedule(BetaRange):
    """Betas along the logistic function on [-6, 6] (Xu et al., 2022)."""

    kind: Literal["sigmoid"] = "sigmoid"


class CosineSchedule(ScheduleOptions):
    """alphas_cumprod(t) = cos^2((t / T + s) / (1 + s) pi / 2), betas up to `max_beta` (Nichol & Dhariwal, 2021)."""

    kind: Literal["cosine"] = "cosine"
    s: Annotated[float, Field(gt=0, le=1)] = 0.008
    max_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


class LaplaceSchedule(ScheduleOptions):
    """log-SNR distributed as Laplace(mean, scale) over t (Hang et al., 2024)."""

    kind: Literal["laplace"] = "laplace"
    mean: float = 0.0
    scale: Positive = 0.5


class EdmSchedule(ScheduleOptions):
    """log(edm_sigma) distributed as N(p_mean, p_std^2) over t (Karras et al., 2022)."""

    kind: Literal["edm"] = "edm"
    p_mean: float = -1.2
    p_std: Positive = 1.2


class GeometricSchedule(ScheduleOptions):
    """log-SNR linear in t: edm_sigma = sigma_min (sigma_max / sigma_min)^t, the VE process of Song et al. (2021)."""

    kind: Literal["geometric"] = "geometric"


class LearnedSchedule(ScheduleOptions):
    """log-SNR a monotone network of t, trained to lower the variance of the bound (Kingma et al., 2021)."""

    kind: Literal["learned"] = "learned"
    width: Count = 64


class TableSchedule(ScheduleOptions):
    """A table of your own: beta_1..beta_T, one per step of the chain."""

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
    """What every forward process has.

    `log_snr_max` and `log_snr_min` are the ends of what is used of a schedule that has no ends of its own: all of
    continuous time, and `laplace`, `edm` and `geometric` in a chain.
    """

    kind: str
    num_train_timesteps: Annotated[int, Field(ge=2)] = 1000
    log_snr_max: float = 13.3
    log_snr_min: float = -13.3

    def _check(self, schedule: ScheduleConfig) -> None:
        """Refuse ends that are none, and a table or betas that do not fit the number of steps."""
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
    """The forward chain of equations (1)-(4) and the variance of its reverse kernel, equation (6)."""

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
    """What every process in continuous time has; t runs over (0, 1] and networks are told num_train_timesteps x t."""

    reverse_variance: Literal["beta", "beta_tilde"] = "beta"

    def _check(self, schedule: ScheduleConfig) -> None:
        super()._check(schedule)
        if schedule.zero_terminal_snr:
            raise ValueError(
                "schedule.zero_terminal_snr = true: the SDE is singular there; use process.kind = ddpm, "
                "or a lower process.log_snr_min"
            )


class VpProcess(ContinuousOptions):
    """The variance-preserving SDE of equation (12): alpha_t^2 + sigma_t^2 = 1."""

    kind: Literal["vp"] = "vp"
    schedule: ScheduleConfig = LinearSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "VpProcess":
        self._check(self.schedule)
        return self


class SubVpProcess(ContinuousOptions):
    """The sub-VP SDE (Song et al., 2021): alpha_t of the VP SDE, sigma_t the square of its."""

    kind: Literal["sub_vp"] = "sub_vp"
    schedule: ScheduleConfig = LinearSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "SubVpProcess":
        self._check(self.schedule)
        return self


class VeProcess(ContinuousOptions):
    """The variance-exploding SDE: alpha_t = 1; the default ends are sigma = 0.01 and 50 (Song et al., 2021)."""

    kind: Literal["ve"] = "ve"
    log_snr_max: float = 9.210340371976182
    log_snr_min: float = -7.824046010856292
    schedule: ScheduleConfig = GeometricSchedule()

    @model_validator(mode="after")
    def _schedule_fits(self) -> "VeProcess":
        self._check(self.schedule)
        return self


ProcessConfig = Annotated[DdpmProcess | VpProcess | SubVpProcess | VeProcess, Field(discriminator="kind")]
