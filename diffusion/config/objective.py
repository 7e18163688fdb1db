"""The objective: what is predicted, how errors are weighted over t, and how t is drawn."""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.config.base import Config, Positive
from diffusion.config.process import LearnedSchedule, ProcessConfig


class SimpleWeighting(Config):
    """lambda(t) = 1 on the error of what the network predicts: DDPM's L_simple (for `score`, 1 on that of epsilon)."""

    kind: Literal["simple"] = "simple"


class VlbWeighting(Config):
    """lambda(t) that makes equation (8) the diffusion terms of the bound, equation (7), with Sigma_theta = beta."""

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
