"""Samplers of the reverse process, one algorithm a file, all with the interface of `base.Solver`."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffusion import config as configs
from diffusion.config import FROM_PURE_NOISE, ClassifierFree, SolverConfig, SolverOptions, starts_from_pure_noise
from diffusion.denoiser import Denoiser
from diffusion.solvers.ancestral import AncestralSolver
from diffusion.solvers.base import ImageNoise, Noise, Query, Solver
from diffusion.solvers.ddim import DdimSolver
from diffusion.solvers.dpmpp_2m import Dpmpp2MSolver
from diffusion.solvers.dpmpp_2m_sde import Dpmpp2MSdeSolver
from diffusion.solvers.dpmpp_3m import Dpmpp3MSolver
from diffusion.solvers.edm_stochastic import EdmStochasticSolver
from diffusion.solvers.euler import EulerSolver
from diffusion.solvers.euler_maruyama import EulerMaruyamaSolver
from diffusion.solvers.guidance import AutoguidedDenoiser, ClassifierFreeSolver, autoguided, guided
from diffusion.solvers.heun import HeunSolver
from diffusion.solvers.predictor_corrector import PredictorCorrectorSolver
from diffusion.solvers.rk45 import Rk45Solver
from diffusion.solvers.unipc import UniPCSolver

__all__ = [
    "AutoguidedDenoiser",
    "ClassifierFreeSolver",
    "ImageNoise",
    "Noise",
    "Query",
    "Sampler",
    "Solver",
    "autoguided",
    "drive",
    "guided",
    "make_solver",
    "solve",
]

SOLVERS: dict[type[SolverOptions], Callable[..., Solver]] = {
    configs.Ancestral: AncestralSolver,
    configs.Ddim: DdimSolver,
    configs.EulerMaruyama: EulerMaruyamaSolver,
    configs.PredictorCorrector: PredictorCorrectorSolver,
    configs.Euler: EulerSolver,
    configs.Heun: HeunSolver,
    configs.Rk45: Rk45Solver,
    configs.EdmStochastic: EdmStochasticSolver,
    configs.Dpmpp2M: Dpmpp2MSolver,
    configs.Dpmpp3M: Dpmpp3MSolver,
    configs.Dpmpp2MSde: Dpmpp2MSdeSolver,
    configs.UniPC: UniPCSolver,
}


class Sampler(Protocol):
    """What can be driven like a solver: a `Solver`, or one wrapped in classifier-free guidance."""

    @property
    def x(self) -> Tensor:
        """Current rows [B, C, H, W]; the result once `want()` returns None."""
        ...

    def want(self) -> Query | None:
        """The next rows to evaluate, or None at the end."""
        ...

    def feed(self, output: Tensor) -> None:
        """Take the network's raw output for the rows that `want()` returned."""
        ...


@torch.no_grad()
def make_solver(
    config: SolverConfig,
    denoiser: Denoiser,
    noise: Noise,
    label: Tensor | None = None,
    guidance: ClassifierFree | None = None,
) -> Sampler:
    """A solver in its initial state, for the images of `noise`.

    Args:
        config: which algorithm, and its settings.
        denoiser: gives the process and the parameterization; its network is not called.
        noise: the images' own noise; draw 0 is x_T / prior_std.
        label: int64 [B], or None.
        guidance: classifier-free guidance, or None; autoguidance is part of the denoiser (`autoguided`).

    Raises:
        ValueError: more steps than the chain has, a solver that cannot start from a terminal SNR of zero, or labels or
            guidance that the network does not support.
    """
    _check(config, denoiser, label, guidance)
    solver = SOLVERS[type(config)](config, denoiser, noise, label)
    return solver if guidance is None else ClassifierFreeSolver(solver, denoiser, guidance.scale)


def _check(config: SolverConfig, denoiser: Denoiser, label: Tensor | None, guidance: ClassifierFree | None) -> None:
    process = denoiser.process
    end = process.log_snr(torch.tensor(process.t_max, dtype=torch.float64))
    if math.isinf(float(end)) and not starts_from_pure_noise(config):
        raise ValueError(
            f"solver.kind = {config.kind}: cannot start where the SNR is zero; allowed: "
            f"{', '.join(FROM_PURE_NOISE)}, with spacing = uniform"
        )
    if label is not None and not denoiser.has_labels:
        raise ValueError("labels: this network has none (network.classes = 0)")
    if label is None and denoiser.needs_label:
        raise ValueError("labels: this network needs one for every row; it has no label that stands for none")
    if guidance is not None and (label is None or denoiser.null_label is None):
        raise ValueError(
            "guidance.kind = classifier_free: needs labels, and a network that has them and was trained with one for "
            "none (objective.label_dropout above 0)"
        )


def drive(denoiser: Denoiser, solver: Sampler) -> Tensor:
    """Run a solver to its end with one denoiser.

    Returns:
        The images, [B, C, H, W].
    """
    while (query := solver.want()) is not None:
        solver.feed(denoiser.output(query.x, query.t, query.label))
    return solver.x


def solve(
    denoiser: Denoiser,
    noise: Noise,
    solver: SolverConfig,
    label: Tensor | None = None,
    guidance: ClassifierFree | None = None,
) -> Tensor:
    """Sample the images of `noise`.

    Arguments and errors are those of `make_solver`.

    Returns:
        The images, [B, C, H, W].
    """
    return drive(denoiser, make_solver(solver, denoiser, noise, label, guidance))
