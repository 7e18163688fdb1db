"""Configuration of the solvers, and of guidance.

Formulas and references are stated in full where they are computed, in `diffusion/solvers/`. Defaults for num_steps are
the steps of one sample; `evaluations` counts network evaluations.
"""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

import json
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from diffusion.config.base import Config, Positive
from diffusion.config.process import ProcessConfig

MAX_STEPS = 10**6  # whose times are held in memory
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class SolverOptions(Config):
    """The fields that every solver has.

    Attributes:
        kind: which solver.
        clip_x0: clamp every estimate of x_0 to [-1, 1].
        denoise: end with the estimate of x_0 at the last time; otherwise the result is x at the least noise, t_min.
    """

    kind: str
    clip_x0: bool = True
    denoise: bool = True


Spacing = Literal["uniform", "log_snr", "karras"]


class GridOptions(SolverOptions):
    """The fields of every solver on a fixed grid of times.

    Attributes:
        spacing: even in t (`uniform`), in log-SNR (`log_snr`), or in edm_sigma^(1/7) (`karras`; Karras et al. 2022,
            equation 5).
    """

    spacing: Spacing = "uniform"


class Ancestral(GridOptions):
    """The reverse chain of equations (5)-(6) (Ho et al. 2020, algorithm 2), on a grid of times.

    Attributes:
        num_steps: number of steps; T steps with uniform spacing are DDPM's sampler.
    """

    kind: Literal["ancestral"] = "ancestral"
    num_steps: Steps = 250


class Ddim(GridOptions):
    """DDIM (Song, Meng & Ermon, 2021): eta = 0 is deterministic, eta = 1 is `ancestral` with beta_tilde.

    Attributes:
        num_steps: number of steps.
        eta: scale of the noise added in a step, in [0, 1].
    """

    kind: Literal["ddim"] = "ddim"
    num_steps: Steps = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0


class EulerMaruyama(GridOptions):
    """The Euler-Maruyama method on the reverse SDE, equation (10): weak order 1.

    Attributes:
        num_steps: number of steps.
    """

    kind: Literal["euler_maruyama"] = "euler_maruyama"
    num_steps: Steps = 250


class PredictorCorrector(GridOptions):
    """A step of the reverse SDE, then Langevin steps at the same noise level (Song et al. 2021, algorithms 1, 4 and 5).

    Attributes:
        num_steps: number of predictor steps.
        corrector_steps: Langevin steps after each of them.
        corrector_snr: ratio r of a Langevin step's drift to its noise, above 0; the step size is 2 (r ||z|| /
            ||score||)^2.
    """

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    num_steps: Steps = 125
    corrector_steps: Steps = 1
    corrector_snr: Positive = 0.16


class Euler(GridOptions):
    """Euler's method on the probability-flow ODE in the process's own time: order 1.

    Attributes:
        num_steps: number of steps.
    """

    kind: Literal["euler"] = "euler"
    num_steps: Steps = 100


class Heun(GridOptions):
    """Heun's method on the probability-flow ODE in edm_sigma (Karras et al. 2022, algorithm 1): order 2.

    Attributes:
        num_steps: number of steps, of two evaluations each.
    """

    kind: Literal["heun"] = "heun"
    spacing: Spacing = "log_snr"  # even in t, the first step of a schedule that ends in pure noise spans decades
    num_steps: Steps = 25


class Rk45(SolverOptions):
    """Dormand-Prince 5(4) on the probability-flow ODE in log-SNR, with a step size for each image.

    Attributes:
        rtol: relative tolerance of a step's error, above 0.
        atol: absolute tolerance, in the units of x, above 0.
    """

    kind: Literal["rk45"] = "rk45"
    rtol: Positive = 1e-4
    atol: Positive = 1e-4


class EdmStochastic(GridOptions):
    """Heun's method with added noise (Karras et al. 2022, algorithm 2); noise levels are edm_sigma.

    Attributes:
        num_steps: number of steps, of two evaluations each.
        s_churn: overall amount of added noise; 0 is `heun`.
        s_min: least noise level at which noise is added.
        s_max: greatest noise level at which noise is added.
        s_noise: factor on the standard deviation of the added noise.
    """

    kind: Literal["edm_stochastic"] = "edm_stochastic"
    spacing: Spacing = "log_snr"
    num_steps: Steps = 50
    s_churn: Annotated[float, Field(ge=0)] = 30.0
    s_min: Annotated[float, Field(ge=0)] = 0.01
    s_max: Positive = 1.0
    s_noise: Positive = 1.007


class Dpmpp2M(GridOptions):
    """DPM-Solver++ (2M): multistep on the probability-flow ODE in log-SNR (Lu et al. 2022), order 2.

    Attributes:
        num_steps: number of steps, of one evaluation each.
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    num_steps: Steps = 30


class Dpmpp3M(GridOptions):
    """DPM-Solver++ (3M): multistep on the probability-flow ODE in log-SNR (Lu et al. 2022), order 3.

    Attributes:
        num_steps: number of steps, of one evaluation each.
    """

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    num_steps: Steps = 30


class Dpmpp2MSde(GridOptions):
    """SDE-DPM-Solver++ (2M): multistep on the reverse SDE in log-SNR (Lu et al. 2022), weak order 2.

    Attributes:
        num_steps: number of steps, of one evaluation each.
    """

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"
    num_steps: Steps = 50


class UniPC(GridOptions):
    """UniPC: a multistep predictor that the next evaluation also corrects (Zhao et al. 2023).

    Attributes:
        num_steps: number of steps, of one evaluation each.
        order: number of points p of the predictor, 1 to 3; with the corrector the method has order p + 1.
    """

    kind: Literal["unipc"] = "unipc"
    num_steps: Steps = 20
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
MAX_EVALUATIONS = 10_000  # of an image, by a solver that somebody else chose
FROM_PURE_NOISE = ("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")


def check_solver(process: ProcessConfig, solver: SolverConfig, field: str = "solver") -> None:
    """Refuse more steps than a chain has, and a solver that cannot start where the SNR is zero.

    Args:
        process: the forward process.
        solver: the solver to be used with it.
        field: path of the solver's configuration, for the message.

    Raises:
        ValueError: naming the field, beneath `field`, and what is allowed.
    """
    if process.schedule.zero_terminal_snr and not starts_from_pure_noise(solver):
        raise ValueError(
            f"{field}.kind = {solver.kind}: cannot start where the SNR is zero; allowed: {', '.join(FROM_PURE_NOISE)}, "
            "with spacing = uniform"
        )
    if isinstance(solver, Rk45) or process.kind != "ddpm" or solver.spacing != "uniform":
        return
    max_steps = process.num_train_timesteps - (0 if solver.denoise else 1)
    if solver.num_steps > max_steps:
        raise ValueError(
            f"{field}.num_steps = {solver.num_steps}; allowed: at most {max_steps}, "
            "the chain's process.num_train_timesteps"
        )


def starts_from_pure_noise(solver: SolverConfig) -> bool:
    """Whether a solver can start at a terminal SNR of zero, where log-SNR is -inf."""
    return solver.kind in FROM_PURE_NOISE and getattr(solver, "spacing", "uniform") == "uniform"


def evaluations(config: SolverConfig) -> int | None:
    """Network evaluations per image (NFE), without those of guidance; None if the solver adapts its steps."""
    if isinstance(config, Rk45):
        return None
    between = config.num_steps - 1 if config.denoise else config.num_steps
    if isinstance(config, Heun | EdmStochastic):
        return config.num_steps + between
    if isinstance(config, PredictorCorrector):
        return config.num_steps + between * config.corrector_steps
    return config.num_steps


def check_evaluations(config: SolverConfig) -> None:
    """Check that somebody else's solver would come to an end, and that its times fit into memory.

    Raises:
        ValueError: it evaluates the network more than MAX_EVALUATIONS times for an image, which is also rk45's limit.
    """
    count = evaluations(config)
    if count is not None and count > MAX_EVALUATIONS:
        raise ValueError(f"solver: {count} evaluations of an image; allowed: at most {MAX_EVALUATIONS}")


class ClassifierFree(Config):
    """Classifier-free guidance: away from the network's prediction without the label (Ho & Salimans, 2022).

    Attributes:
        scale: w in weak + w (strong - weak): 0 is unconditional, 1 conditional, more extrapolates.
    """

    kind: Literal["classifier_free"] = "classifier_free"
    scale: Annotated[float, Field(ge=0)] = 1.5


class Autoguidance(Config):
    """Autoguidance: away from the prediction of a weaker model (Karras et al. 2024).

    Attributes:
        scale: w in weak + w (strong - weak): 0 is the weaker model, 1 the stronger, more extrapolates.
        guide: folder of the weaker model's package.
    """

    kind: Literal["autoguidance"] = "autoguidance"
    scale: Annotated[float, Field(ge=0)] = 1.5
    guide: Annotated[str, Field(min_length=1)]


GuidanceConfig = Annotated[ClassifierFree | Autoguidance, Field(discriminator="kind")]


def check_guidance(guidance: GuidanceConfig | None, classes: int, field: str = "guidance") -> None:
    """Refuse classifier-free guidance for a network without classes.

    Args:
        guidance: classifier-free guidance, autoguidance or none.
        classes: number of classes of the network.
        field: path of the guidance's configuration, for the message.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    if isinstance(guidance, ClassifierFree) and not classes:
        raise ValueError(f"{field}.kind = classifier_free: needs network.classes > 0; allowed: none, or autoguidance")


SOLVER_ADAPTER: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)


def limit_nfe(solver: SolverConfig, nfe: int) -> SolverConfig:
    """The solver with the most steps that take at most `nfe` network evaluations per image.

    Args:
        solver: any but rk45; its other settings are kept.
        nfe: the number of evaluations allowed, at least 1.

    Raises:
        ValueError: no number of steps is that small, or the solver is rk45.
    """
    if solver.kind == "rk45":
        raise ValueError(f"{nfe}: rk45 chooses its steps by itself; allowed: another solver")
    least, two = (evaluations(solver.model_copy(update={"num_steps": steps})) or 0 for steps in (1, 2))
    if nfe < least:
        raise ValueError(f"{nfe}; allowed: at least {least}")
    steps = min(1 + (nfe - least) // (two - least), MAX_STEPS)  # each beyond the first takes as many evaluations
    return SOLVER_ADAPTER.validate_json(json.dumps(solver.model_dump(mode="json") | {"num_steps": steps}))
