"""Mutants of the EMA and its post-hoc reconstruction."""
# mutants take whatever the originals take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion import ema
from diffusion.verify.mutants.mutation import Mutation


def _gamma_not_plus_one(original: Callable[..., float]) -> Callable[..., float]:
    return lambda step, gamma: original(step, gamma - 1)


def _one_track(original: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(steps: Any, gammas: Any, target_step: float, target_gamma: float) -> Any:  # noqa: ANN401
        weights, first = np.zeros(len(gammas)), gammas == gammas[0]
        weights[first] = original(steps[first], gammas[first], target_step, target_gamma)
        return weights

    return mutant


MUTANTS = {
    "ema-gamma-not-plus-one": Mutation("the EMA decays with the power gamma", 16, (ema,), "decay", _gamma_not_plus_one),
    "ema-one-track": Mutation("post-hoc EMA forgets the second track", 16, (ema,), "posthoc_weights", _one_track),
}
