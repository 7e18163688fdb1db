"""How the learning rate goes on after its warm-up: `optim.schedule`.

A schedule is a factor of `optim.lr`. Some depend on the number of steps, `training.steps`: a run with one of those
could not be lengthened without changing what it has done, so that is refused (`trainer/run/identity.py`).
"""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

import math
from typing import Annotated, Literal

from pydantic import Field

from diffusion.config import Config, Count
from trainer.config.fields import Fraction


class RateOptions(Config):
    """The fields and the method that every schedule has.

    Attributes:
        kind: which schedule.
    """

    kind: str

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:  # noqa: ARG002 - some need less
        """The factor of `optim.lr` after the warm-up.

        Args:
            step: training step, above `warmup_steps`.
            warmup_steps: steps of the warm-up.
            steps: `training.steps`.
        """
        return 1.0


class ConstantRate(RateOptions):
    """The factor is always 1. A run may be lengthened."""

    kind: Literal["constant"] = "constant"


class InverseSqrtRate(RateOptions):
    """1 / sqrt(max(1, step / reference_steps)) (Karras et al. 2024, EDM2). A run may be lengthened.

    Attributes:
        reference_steps: the last step at the whole rate.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    reference_steps: Count = 70_000

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:  # noqa: ARG002
        """The factor of `optim.lr`."""
        return 1 / math.sqrt(max(1.0, step / self.reference_steps))


class DecayingRate(RateOptions):
    """The fields of schedules that end with `training.steps`.

    Attributes:
        final: the factor at the last step, in [0, 1).
    """

    final: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CosineRate(DecayingRate):
    """final + (1 - final) (1 + cos(pi p)) / 2, p from 0 after the warm-up to 1 at the end (Loshchilov & Hutter 2017).

    A run cannot be lengthened.
    """

    kind: Literal["cosine"] = "cosine"

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        """The factor of `optim.lr`."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _passed(step, warmup_steps, steps))) / 2


class LinearRate(DecayingRate):
    """1 - (1 - final) p, p from 0 after the warm-up to 1 at the last step. A run cannot be lengthened."""

    kind: Literal["linear"] = "linear"

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        """The factor of `optim.lr`."""
        return 1 - (1 - self.final) * _passed(step, warmup_steps, steps)


class WarmupStableDecayRate(DecayingRate):
    """1, then down to `final` in a straight line over the last `decay` of the steps (Hu et al. 2024, MiniCPM).

    A run may be lengthened as long as no checkpoint is from its decay.

    Attributes:
        decay: the share of `training.steps` that decays.
    """

    kind: Literal["wsd"] = "wsd"
    decay: Fraction = 0.2

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        """The factor of `optim.lr`."""
        begins = max(warmup_steps, steps - round(self.decay * steps))
        return 1 - (1 - self.final) * _passed(step, begins, steps)


def _passed(step: int, begins: int, steps: int) -> float:
    """The share of the steps from `begins` to `steps` that has passed, in [0, 1]."""
    return min(1.0, max(0.0, (step - begins) / max(1, steps - begins)))


RateSchedule = Annotated[
    ConstantRate | InverseSqrtRate | CosineRate | LinearRate | WarmupStableDecayRate, Field(discriminator="kind")
]
