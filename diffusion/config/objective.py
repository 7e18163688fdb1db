"""Configuration of the objective: what the network predicts, the weight lambda(t) of its error, and how t is drawn.

SNR = alpha_t^2 / sigma_t^2. Weights are stated for the squared error of x_0 or of eps, and converted to that of what
the network predicts (`diffusion/weighting.py`), so a weighting means the same under every prediction, but for `simple`.
"""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.config.base import Config, Positive
from diffusion.config.process import LearnedSchedule, ProcessConfig


class SimpleWeighting(Config):
    """lambda(t) = 1 on the error of what the network predicts: L_simple (Ho et al. 2020, equation 14).

    For `score` networks it is 1 on the error of eps.
    """

    kind: Literal["simple"] = "simple"


class VlbWeighting(Config):
    """lambda(t) = T beta_t / (2 (1 - beta_t) sigma_t^2) on the error of eps (Ho et al. 2020, equation 12).

    It makes equation (8) the diffusion terms of the variational bound, equation (7), with Sigma_theta = beta_t. In
    continuous time it is the limit -(t_max - t_min) (d log_snr / dt) / 2.
    """

    kind: Literal["vlb"] = "vlb"


class LikelihoodWeighting(Config):
    """lambda(t) = g(t)^2 / 2 in equation (11): the likelihood weighting (Song, Durkan, Murray & Ermon 2021, theorem 1).

    It bounds the negative log-likelihood of the reverse SDE. In continuous time it is `vlb`; in a chain it is
    (1 - beta_t) times that.
    """

    kind: Literal["likelihood"] = "likelihood"


class SnrWeighting(Config):
    """SNR on the error of x_0, which is 1 on that of eps (Salimans & Ho, 2022)."""

    kind: Literal["snr"] = "snr"


class MinSnrWeighting(Config):
    """min(SNR, gamma) on the error of x_0, whatever the network predicts (Hang et al. 2023).

    That is min(SNR, gamma) / SNR on the error of eps and min(SNR, gamma) / (SNR + 1) on that of v.

    Attributes:
        gamma: the cap on SNR, above 0.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: Positive = 5.0


class P2Weighting(Config):
    """(k + SNR)^-gamma on the error of eps (Choi et al. 2022).

    Attributes:
        k: bounds the weight where SNR is small, above 0.
        gamma: how strongly low noise is weighted down; 0 is `snr`.
    """

    kind: Literal["p2"] = "p2"
    k: Positive = 1.0
    gamma: Annotated[float, Field(ge=0)] = 1.0


class EdmWeighting(Config):
    """(edm_sigma^2 + sigma_data^2) / (edm_sigma sigma_data)^2 on the error of x_0 (Karras et al. 2022, table 1).

    It is SNR + 1 / sigma_data^2, and 1 on the error of an `edm` network's output F.
    """

    kind: Literal["edm"] = "edm"


class SigmoidWeighting(Config):
    """sigmoid(bias - log_snr) on the error of eps (Hoogeboom et al. 2024).

    Attributes:
        bias: the log-SNR at which the weight is 1/2.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 2.0


class AdaptiveWeighting(Config):
    """exp(-u(log_snr)) on the prediction's error, plus u: a learned log-variance (Karras et al. 2024, equation 21).

    Attributes:
        knots: number of evenly spaced log-SNRs between which u is linear, at least 2.
    """

    kind: Literal["adaptive"] = "adaptive"
    knots: Annotated[int, Field(ge=2, le=10**6)] = 32


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
    """Independent uniform t: on 1..T in a chain, on [t_min, t_max] in continuous time."""

    kind: Literal["uniform"] = "uniform"


class StratifiedTime(Config):
    """One t in each of B equal strata of the time range, where B is the GLOBAL batch size.

    Each t is uniform, and the error of a batch mean falls as B^-3/2 instead of B^-1/2.
    """

    kind: Literal["stratified"] = "stratified"


class ImportanceTime(Config):
    """Stratified draws with a density proportional to sqrt(E[loss^2 | t]) (Nichol & Dhariwal 2021, equation 18).

    Each row is weighted by 1 / density, so the expected loss is that of uniform t.

    Attributes:
        bins: number of equal parts of the time range whose second moments are kept, at least 2.
        decay: factor by which a bin's moment is discounted for each new loss, in (0, 1).
        uniform: fraction of the density that stays uniform, in (0, 1], so that every bin goes on being measured.
    """

    kind: Literal["importance"] = "importance"
    bins: Annotated[int, Field(ge=2, le=10**6)] = 100
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    uniform: Annotated[float, Field(gt=0, le=1)] = 0.1


TimeSamplingConfig = Annotated[UniformTime | StratifiedTime | ImportanceTime, Field(discriminator="kind")]


class ObjectiveConfig(Config):
    """What the network predicts, the weight of its error, and how t is drawn.

    Attributes:
        prediction: `epsilon`, `score`, `x0`, `v` or `edm` (Karras et al.'s preconditioned F).
        weighting: lambda(t).
        time_sampling: how t is drawn in training.
        sigma_data: standard deviation of the data that the `edm` prediction and weighting assume.
        label_dropout: probability that a training row's label is dropped, for classifier-free guidance.
    """

    prediction: Literal["epsilon", "score", "x0", "v", "edm"] = "epsilon"
    weighting: WeightingConfig = SimpleWeighting()
    time_sampling: TimeSamplingConfig = StratifiedTime()
    sigma_data: Positive = 0.5
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


def check_objective(process: ProcessConfig, objective: ObjectiveConfig) -> None:
    """Refuse an objective that the process does not define.

    Args:
        process: the forward process.
        objective: the objective to be trained with it.

    Raises:
        ValueError: naming the field, the reason and what to use instead.
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
