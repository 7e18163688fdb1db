"""The solvers, and guidance."""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

import json
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from diffusion.config.base import Config, Count, Positive
from diffusion.config.process import ProcessConfig


class SolverOptions(Config):
    """What every solver has.

    `clip_x0` holds every estimate of x_0 within [-1, 1]. `denoise` ends with the estimate of x_0 at the last time;
    without it the result is x at the least noise of the process.
    """

    kind: str
    clip_x0: bool = True
    denoise: bool = True


Spacing = Literal["uniform", "log_snr", "karras"]


class GridOptions(SolverOptions):
    """What every solver on a fixed grid of times has: even in t, in log-SNR, or in edm_sigma^(1/7) (`karras`)."""

    spacing: Spacing = "uniform"


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
    spacing: Spacing = "log_snr"  # even in t, the first step of a schedule that ends in pure noise spans decades
    num_steps: Count = 25


class Rk45(SolverOptions):
    """Dormand-Prince 5(4) on the probability-flow ODE in log-SNR, the step size chosen for every image by itself."""

    kind: Literal["rk45"] = "rk45"
    rtol: Positive = 1e-4
    atol: Positive = 1e-4


class EdmStochastic(GridOptions):
    """Heun's method with added noise, algorithm 2 of Karras et al. (2022)."""

    kind: Literal["edm_stochastic"] = "edm_stochastic"
    spacing: Spacing = "log_snr"
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
FROM_PURE_NOISE = ("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")


def check_solver(process: ProcessConfig, solver: SolverConfig, field: str = "solver") -> None:
    """Refuse more steps than a chain has, and a solver that cannot start where the SNR is zero.

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
    """Whether a solver needs no finite log-SNR at its start."""
    return solver.kind in FROM_PURE_NOISE and getattr(solver, "spacing", "uniform") == "uniform"


def evaluations(config: SolverConfig) -> int | None:
    """Network evaluations per image; None where the solver decides as it goes."""
    if isinstance(config, Rk45):
        return None
    between = config.num_steps - 1 if config.denoise else config.num_steps
    if isinstance(config, Heun | EdmStochastic):
        return config.num_steps + between
    if isinstance(config, PredictorCorrector):
        return config.num_steps + between * config.corrector_steps
    return config.num_steps


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


def check_guidance(guidance: GuidanceConfig | None, classes: int, field: str = "guidance") -> None:
    """Refuse classifier-free guidance for a network without classes.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    if isinstance(guidance, ClassifierFree) and not classes:
        raise ValueError(f"{field}.kind = classifier_free: needs network.classes > 0; allowed: none, or autoguidance")


SOLVER_ADAPTER: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)


def limit_nfe(solver: SolverConfig, nfe: int) -> SolverConfig:
    """The solver with the most steps that take no more than `nfe` network evaluations per image.

    Raises:
        ValueError: there is none.
    """
    if solver.kind == "rk45":
        raise ValueError(f"{nfe}: rk45 chooses its steps by itself; allowed: another solver")
    values = solver.model_dump(mode="json")
    for steps in range(nfe, 0, -1):
        candidate = SOLVER_ADAPTER.validate_json(json.dumps(values | {"num_steps": steps}))
        if (evaluations(candidate) or 0) <= nfe:
            return candidate
    raise ValueError(f"{nfe}; allowed: at least 1")
