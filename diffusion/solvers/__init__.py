"""Samplers of the reverse process, one algorithm a file, all state machines (see `base.py`)."""

from torch import Tensor

from diffusion.chain import ReverseVariance
from diffusion.config import Ancestral, Ddim, Dpmpp2M, SolverConfig
from diffusion.denoiser import Denoiser
from diffusion.schedule import Schedule
from diffusion.solvers.ancestral import AncestralSolver
from diffusion.solvers.base import ImageNoise, Query, Solver
from diffusion.solvers.ddim import DdimSolver
from diffusion.solvers.dpmpp_2m import Dpmpp2MSolver

__all__ = ["ImageNoise", "Query", "Solver", "make_solver", "solve"]


def make_solver(
    config: SolverConfig, schedule: Schedule, noise: ImageNoise, variance: ReverseVariance = "beta"
) -> Solver:
    """A solver at its start, for the images of `noise`.

    Args:
        config: which algorithm, and its settings.
        schedule: the chain to run in reverse.
        noise: the images' own noise; draw 0 is x_T.
        variance: Sigma_theta of equation (6), used by `ancestral` alone.

    Raises:
        ValueError: more steps than the chain has.
    """
    match config:
        case Ancestral():
            return AncestralSolver(config, schedule, noise, variance)
        case Ddim():
            return DdimSolver(config, schedule, noise)
        case Dpmpp2M():
            return Dpmpp2MSolver(config, schedule, noise)


def solve(denoiser: Denoiser, solver: Solver) -> Tensor:
    """Drive a solver to its end with one denoiser; returns the images, float32 [B, C, H, W]."""
    while (query := solver.want()) is not None:
        solver.feed(denoiser.epsilon(query.x, query.t))
    return solver.x
