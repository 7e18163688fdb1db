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


class ScheduleOptions(Config):
    """What every noise schedule has.

    `zero_terminal_snr` shifts and scales alpha_t of a chain so that x_T is pure noise (Lin et al., 2024).
    """

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


class EdmWeighting(Config):
    """(edm_sigma^2 + sigma_data^2) / (edm_sigma sigma_data)^2 on the error of x_0 (Karras et al., 2022)."""

    kind: Literal["edm"] = "edm"


class SigmoidWeighting(Config):
    """sigmoid(bias - log_snr) on the error of epsilon (Hoogeboom et al., 2024)."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 2.0


class AdaptiveWeighting(Config):
    """exp(-u(log_snr)) on the prediction's error, plus u: a learned log-variance (Karras et al., 2024).

    u is piecewise linear over `knots` even points of the log-SNR range.
    """

    kind: Literal["adaptive"] = "adaptive"
    knots: Annotated[int, Field(ge=2)] = 32


WeightingConfig = Annotated[
    SimpleWeighting
    | VlbWeighting
    | LikelihoodWeighting
    | SnrWeighting
    | MinSnrWeighting
    | P2Weighting
    | EdmWeighting
    | SigmoidWeighting
    | AdaptiveWeighting,
    Field(discriminator="kind"),
]


class UniformTime(Config):
    """t independent and uniform on 1..T."""

    kind: Literal["uniform"] = "uniform"


class StratifiedTime(Config):
    """One t in each of B equal strata of 1..T, B being the GLOBAL batch: same mean as uniform, far less variance."""

    kind: Literal["stratified"] = "stratified"


class ImportanceTime(Config):
    """Stratified, but t as often as its losses are large: in proportion to the root of their second moment.

    The second moments are kept for `bins` equal parts of time as averages that forget at rate 1 - `decay`; a share
    `uniform` of the draws stays uniform, so that every part goes on being measured (Nichol & Dhariwal, 2021).
    """

    kind: Literal["importance"] = "importance"
    bins: Annotated[int, Field(ge=2)] = 100
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    uniform: Annotated[float, Field(gt=0, le=1)] = 0.1


TimeSamplingConfig = Annotated[UniformTime | StratifiedTime | ImportanceTime, Field(discriminator="kind")]


class ObjectiveConfig(Config):
    """What the network predicts, how errors are weighted over t, and how t is drawn.

    `sigma_data` is the data's standard deviation that the `edm` prediction and weighting assume; `label_dropout` the
    share of rows whose label is hidden in training, for classifier-free guidance.
    """

    prediction: Literal["epsilon", "score", "x0", "v", "edm"] = "epsilon"
    weighting: WeightingConfig = SimpleWeighting()
    time_sampling: TimeSamplingConfig = StratifiedTime()
    sigma_data: Positive = 0.5
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


def check_objective(process: ProcessConfig, objective: ObjectiveConfig) -> None:
    """Refuse an objective that the process does not define.

    Raises:
        ValueError: naming the field, why, and what to use instead.
    """
    prediction, weighting, schedule = objective.prediction, objective.weighting.kind, process.schedule
    if prediction == "v" and process.kind in ("sub_vp", "ve"):
        raise ValueError(
            f"objective.prediction = v needs alpha^2 + sigma^2 = 1, which process.kind = {process.kind} does not keep; "
            "use epsilon, score, x0 or edm"
        )
    if schedule.zero_terminal_snr and prediction in ("epsilon", "score", "edm"):
        raise ValueError(
            f"objective.prediction = {prediction} says nothing of x_0 where the terminal SNR is zero; use v or x0, "
            "or process.schedule.zero_terminal_snr = false"
        )
    if isinstance(schedule, LearnedSchedule):
        if weighting not in ("vlb", "likelihood"):
            raise ValueError(
                f"objective.weighting.kind = {weighting}: a learned schedule flattens the terms of the bound; use vlb"
            )
        if objective.time_sampling.kind == "importance":
            raise ValueError(
                "objective.time_sampling.kind = importance: a learned schedule does that work; use stratified"
            )


class NetworkOptions(Config):
    """What every network has: `classes` labels to be conditioned on, 0 for none."""

    classes: Annotated[int, Field(ge=0)] = 0


class UNetConfig(NetworkOptions):
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


class DiTConfig(NetworkOptions):
    """diffusers' DiT: a transformer on patches, told t and label through adaptive layer norms (Peebles & Xie, 2023)."""

    kind: Literal["dit"] = "dit"
    patch_size: Count = 2
    layers: Count = 6
    heads: Count = 4
    head_width: Annotated[int, Field(ge=2)] = 32

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that are not squares of whole patches.

        Raises:
            ValueError: naming the sides and what divides them.
        """
        if height != width or height % self.patch_size:
            raise ValueError(
                f"network.patch_size = {self.patch_size} needs square images whose side it divides; "
                f"the images are {height} x {width}: use another patch_size, or network.kind = unet"
            )


class MLPConfig(NetworkOptions):
    """Residual multilayer perceptron on the flattened input, for 2-D data and tests."""

    kind: Literal["mlp"] = "mlp"
    width: Annotated[int, Field(ge=2)] = 128
    depth: Count = 3

    def check_image(self, height: int, width: int) -> None:
        """Any size will do."""


NetworkConfig = Annotated[UNetConfig | DiTConfig | MLPConfig, Field(discriminator="kind")]


class SolverOptions(Config):
    """What every solver has.

    `clip_x0` holds every estimate of x_0 within [-1, 1]. `denoise` ends with the estimate of x_0 at the last time;
    without it the result is x at the least noise of the process.
    """

    clip_x0: bool = True
    denoise: bool = True


class GridOptions(SolverOptions):
    """What every solver on a fixed grid of times has: even in t, in log-SNR, or in edm_sigma^(1/7) (`karras`)."""

    spacing: Literal["uniform", "log_snr", "karras"] = "uniform"


class Ancestral(GridOptions):
    """The reverse chain of equations (5)-(6), on a grid of `num_steps` of the T training steps."""

    kind: Literal["ancestral"] = "ancestral"
    num_steps: Count = 250


class Ddim(GridOptions):
    """DDIM (Song, Meng & Ermon, 2021): eta = 0 is deterministic, eta = 1 is ancestral with beta-tilde."""

    kind: Literal["ddim"] = "ddim"
    num_steps: Count = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0


class EulerMaruyama(GridOptions):
    """Euler-Maruyama on the reverse SDE, equation (10)."""

    kind: Literal["euler_maruyama"] = "euler_maruyama"
    num_steps: Count = 250


class PredictorCorrector(GridOptions):
    """A step of the reverse SDE, then Langevin steps of signal-to-noise ratio `corrector_snr` (Song et al., 2021)."""

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    num_steps: Count = 125
    corrector_steps: Count = 1
    corrector_snr: Positive = 0.16


class Euler(GridOptions):
    """Euler on the probability-flow ODE in the process's own time."""

    kind: Literal["euler"] = "euler"
    num_steps: Count = 100


class Heun(GridOptions):
    """Heun's method on the probability-flow ODE in edm_sigma (Karras et al., 2022): two evaluations a step."""

    kind: Literal["heun"] = "heun"
    num_steps: Count = 25


class Rk45(SolverOptions):
    """Dormand-Prince 5(4) on the probability-flow ODE in log-SNR, the step size chosen for every image by itself."""

    kind: Literal["rk45"] = "rk45"
    rtol: Positive = 1e-3
    atol: Positive = 1e-3
    clip_x0: bool = False


class EdmStochastic(GridOptions):
    """Heun's method with added noise, algorithm 2 of Karras et al. (2022)."""

    kind: Literal["edm_stochastic"] = "edm_stochastic"
    num_steps: Count = 50
    s_churn: Annotated[float, Field(ge=0)] = 30.0
    s_min: Annotated[float, Field(ge=0)] = 0.01
    s_max: Positive = 1.0
    s_noise: Positive = 1.007


class Dpmpp2M(GridOptions):
    """DPM-Solver++ (2M): second-order multistep on the probability-flow ODE in log-SNR (Lu et al., 2022)."""

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    num_steps: Count = 30


class Dpmpp3M(GridOptions):
    """DPM-Solver++ (3M): third-order multistep on the probability-flow ODE in log-SNR (Lu et al., 2022)."""

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    num_steps: Count = 30


class Dpmpp2MSde(GridOptions):
    """SDE-DPM-Solver++ (2M): second-order multistep on the reverse SDE in log-SNR (Lu et al., 2022)."""

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"
    num_steps: Count = 50


class UniPC(GridOptions):
    """UniPC: a multistep predictor whose next evaluation also corrects it (Zhao et al., 2023)."""

    kind: Literal["unipc"] = "unipc"
    num_steps: Count = 20
    order: Annotated[int, Field(ge=1, le=3)] = 2


SolverConfig = Annotated[
    Ancestral
    | Ddim
    | EulerMaruyama
    | PredictorCorrector
    | Euler
    | Heun
    | Rk45
    | EdmStochastic
    | Dpmpp2M
    | Dpmpp3M
    | Dpmpp2MSde
    | UniPC,
    Field(discriminator="kind"),
]


class ClassifierFree(Config):
    """Classifier-free guidance: away from what the network says without the label (Ho & Salimans, 2022)."""

    kind: Literal["classifier_free"] = "classifier_free"
    scale: Annotated[float, Field(ge=0)] = 1.5


class Autoguidance(Config):
    """Autoguidance: away from what a weaker model says, the package in the folder `guide` (Karras et al., 2024)."""

    kind: Literal["autoguidance"] = "autoguidance"
    scale: Annotated[float, Field(ge=0)] = 1.5
    guide: Annotated[str, Field(min_length=1)]


GuidanceConfig = Annotated[ClassifierFree | Autoguidance, Field(discriminator="kind")]
