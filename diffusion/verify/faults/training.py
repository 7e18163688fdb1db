"""Faults in predictions, weightings and the drawing of t."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from diffusion import objective, prediction, time_sampling, weighting
from diffusion.verify.faults.fault import Fault


def _same_on_every_rank(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(config: Any, generator: Any, batch_size: int) -> Any:  # noqa: ANN401
        return np.tile(right(config, generator, max(1, batch_size // 8)), 8)[:batch_size]

    return wrong


def _no_factor(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda parameterization, process, t: right(prediction.Parameterization("epsilon"), process, t)  # noqa: ARG005 - the fault


def _velocity_sign(right: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda x_0, eps, alpha, sigma: alpha * eps + sigma * x_0


FAULTS = {
    "no-prediction-factor": Fault(
        "min-SNR without its per-prediction factor", 10, (weighting, objective), "x0_error_ratio", _no_factor
    ),
    "velocity-sign": Fault("v = alpha eps + sigma x_0", 10, (prediction, objective), "velocity", _velocity_sign),
    "same-t-on-every-rank": Fault(
        "every rank draws the same t", 13, (time_sampling,), "draw_time_fractions", _same_on_every_rank
    ),
}
