"""Configuration of the theory: process, objective, network and solver, as frozen pydantic models.

Every model forbids unknown keys and is validated strictly (a string is never read as a number). Variants are
unions discriminated on `kind`. This module imports no torch, so that a command line can validate in milliseconds.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base of all configuration: immutable, strict, finite numbers only, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BetaRange(Config):
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


class CosineSchedule(Config):
    """alphas_cumprod(t) = cos^2((t / T + s) / (1 + s) pi / 2), betas up to `max_beta` (Nichol & Dhariwal, 2021)."""

    kind: Literal["cosine"] = "cosine"
    s: Annotated[float, Field(gt=0, le=1)] = 0.008
    max_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


class TableSchedule(Config):
    """A table of your own: beta_1..beta_T, one per step of the chain."""

    kind: Literal["table"] = "table"
    betas: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)]


ScheduleConfig = Annotated[
    LinearSchedule | QuadraticSchedule | ScaledLinearSchedule | SigmoidSchedule | CosineSchedule | TableSchedule,
    Field(discriminator="kind"),
]


class ProcessConfig(Config):
    """The forward chain of equations (1)-(4) and the variance of its reverse kernel, equation (6)."""

    kind: Literal["ddpm"] = "ddpm"
    num_train_timesteps: Annotated[int, Field(ge=2)] = 1000
    schedule: ScheduleConfig = CosineSchedule()
    reverse_variance: Literal["beta", "beta_tilde"] = "beta"

    @model_validator(mode="after")
    def _betas_fit(self) -> "ProcessConfig":
        schedule, steps = self.schedule, self.num_train_timesteps
        if isinstance(schedule, TableSchedule) and len(schedule.betas) != steps:
            raise ValueError(
                f"schedule.betas has {len(schedule.betas)} entries; allowed: one per step, "
                f"num_train_timesteps = {steps}"
            )
        if isinstance(schedule, BetaRange):
            largest = max(schedule.beta_start, schedule.beta_end) * 1000 / steps
            if largest >= 1:
                raise ValueError(
                    f"num_train_timesteps = {steps} scales the {schedule.kind} schedule's largest beta to "
                    f"{largest:.4g}; betas must be below 1: use more steps or a smaller beta_end"
                )
        return self


class SimpleWeighting(Config):
    """lambda(t) = 1 on the error of what the network predicts: DDPM's L_simple (for `score`, 1 on that of epsilon)."""

    kind: Literal["simple"] = "simple"


class VlbWeighting(Config):
    """lambda(t) that makes equation (8) the diffusion terms of the variational bound, equation (7)."""

    kind: Literal["vlb"] = "vlb"


class LikelihoodWeighting(Config):
    """lambda(t) = g(t)^2 of equation (11): the bound on the likelihood of the reverse SDE (Song et al., 2021)."""

    kind: Literal["likelihood"] = "likelihood"


class SnrWeighting(Config):
    """The signal-to-noise ratio on the error of x_0, which is 1 on that of epsilon (Salimans & Ho, 2022)."""

    kind: Literal["snr"] = "snr"


class MinSnrWeighting(Config):
    """min(SNR, gamma) on the error of x_0, whatever the network predicts (Hang et al., 2023)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: Positive = 5.0


class P2Weighting(Config):
    """(k + SNR)^-gamma on the error of epsilon (Choi et al., 2022)."""

    kind: Literal["p2"] = "p2"
    k: Positive = 1.0
    gamma: Annotated[float, Field(ge=0)] = 1.0


WeightingConfig = Annotated[
    SimpleWeighting | VlbWeighting | LikelihoodWeighting | SnrWeighting | MinSnrWeighting | P2Weighting,
    Field(discriminator="kind"),
]


class UniformTime(Config):
    """t independent and uniform on 1..T."""

    kind: Literal["uniform"] = "uniform"


class StratifiedTime(Config):
    """One t in each of B equal strata of 1..T, B being the GLOBAL batch: same mean as uniform, far less variance."""

    kind: Literal["stratified"] = "stratified"


TimeSamplingConfig = Annotated[UniformTime | StratifiedTime, Field(discriminator="kind")]


class ObjectiveConfig(Config):
    """What the network predicts, how errors are weighted over t, and how t is drawn."""

    prediction: Literal["epsilon", "score", "x0", "v"] = "epsilon"
    weighting: WeightingConfig = SimpleWeighting()
    time_sampling: TimeSamplingConfig = StratifiedTime()


class UNetConfig(Config):
    """diffusers' UNet2DModel; one resolution per entry of `channels`, self-attention where `attention` says so."""

    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    attention: tuple[bool, ...] = (False, True)
    layers_per_block: Count = 1
    norm_groups: Count = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _fields_fit(self) -> "UNetConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries; allowed: one per entry of channels, {len(self.channels)}"
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels has {width}, which norm_groups = {self.norm_groups} does not divide")
        return self

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that cannot be halved once per further resolution.

        Raises:
            ValueError: naming the sides and what divides them.
        """
        factor = 2 ** (len(self.channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"network.channels has {len(self.channels)} resolutions, so image sides must be divisible by {factor}; "
                f"the images are {height} x {width}: use fewer channels or another size"
            )


class MLPConfig(Config):
    """Residual multilayer perceptron on the flattened input, for 2-D data and tests."""

    kind: Literal["mlp"] = "mlp"
    width: Annotated[int, Field(ge=2)] = 128
    depth: Count = 3

    def check_image(self, height: int, width: int) -> None:
        """Any size will do."""


NetworkConfig = Annotated[UNetConfig | MLPConfig, Field(discriminator="kind")]


class Ancestral(Config):
    """The reverse chain of equations (5)-(6), on a grid of `num_steps` of the T training steps."""

    kind: Literal["ancestral"] = "ancestral"
    num_steps: Count = 250
    clip_x0: bool = True


class Ddim(Config):
    """DDIM (Song, Meng & Ermon, 2021): eta = 0 is deterministic, eta = 1 is ancestral with beta-tilde."""

    kind: Literal["ddim"] = "ddim"
    num_steps: Count = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_x0: bool = True


class Dpmpp2M(Config):
    """DPM-Solver++ (2M): second-order multistep on the probability-flow ODE in log-SNR (Lu et al., 2022)."""

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    num_steps: Count = 30
    clip_x0: bool = True


SolverConfig = Annotated[Ancestral | Ddim | Dpmpp2M, Field(discriminator="kind")]
