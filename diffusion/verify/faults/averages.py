"""Faults in the EMA and its reconstruction."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion import ema
from diffusion.verify.faults.fault import Fault


def _gamma_not_plus_one(right: Callable[..., float]) -> Callable[..., float]:
    return lambda step, gamma: right(step, gamma - 1)


def _one_track(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(steps: Any, gammas: Any, target_step: float, target_gamma: float) -> Any:  # noqa: ANN401
        weights, first = np.zeros(len(gammas)), gammas == gammas[0]
        weights[first] = right(steps[first], gammas[first], target_step, target_gamma)
        return weights

    return wrong


FAULTS = {
    "ema-gamma-not-plus-one": Fault("the EMA decays with the power gamma", 16, (ema,), "decay", _gamma_not_plus_one),
    "ema-one-track": Fault("post-hoc EMA forgets the second track", 16, (ema,), "posthoc_weights", _one_track),
}
