"""Mutants of predictions, weightings and time sampling."""
# mutants take whatever the originals take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from diffusion import objective, prediction, time_sampling, weighting
from diffusion.verify.mutants.mutation import Mutation


def _same_on_every_rank(original: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(config: Any, generator: Any, batch_size: int) -> Any:  # noqa: ANN401
        return np.tile(original(config, generator, max(1, batch_size // 8)), 8)[:batch_size]

    return mutant


def _no_factor(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda parameterization, process, t: original(prediction.Parameterization("epsilon"), process, t)  # noqa: ARG005 - the fault


def _velocity_sign(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda x_0, eps, alpha, sigma: alpha * eps + sigma * x_0


MUTANTS = {
    "no-prediction-factor": Mutation(
        "min-SNR without its per-prediction factor", 10, (weighting, objective), "x0_error_ratio", _no_factor
    ),
    "velocity-sign": Mutation("v = alpha eps + sigma x_0", 10, (prediction, objective), "velocity", _velocity_sign),
    "same-t-on-every-rank": Mutation(
        "every rank draws the same t", 13, (time_sampling,), "draw_time_fractions", _same_on_every_rank
    ),
}
