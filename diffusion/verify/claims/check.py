"""A measured number beside its expected value, and the claims that are made of such checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.config import CosineSchedule, DdpmProcess, LinearSchedule
from diffusion.gaussian import GaussianData
from diffusion.process.sde import Process, make_process

DATA = GaussianData(0.0, 0.25)
CHAIN_SCHEDULES = {"linear": LinearSchedule(), "cosine": CosineSchedule()}


@dataclass(frozen=True)
class Check:
    """One measured number and its expected value.

    Attributes:
        what: the quantity, in words, with its unit.
        measured: by this code.
        expected: from the theory.
        tolerance: largest absolute difference that passes.
    """

    what: str
    measured: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether |measured - expected| <= tolerance; False if measured is NaN."""
        return abs(self.measured - self.expected) <= self.tolerance


@dataclass(frozen=True)
class Claim:
    """A numbered claim and the function that checks it.

    Attributes:
        number: as in docs/theory.md.
        text: the claim, in one line.
        checks: yields the checks; its argument `quick` asks for smaller sizes and fewer draws.
    """

    number: int
    text: str
    checks: Callable[[bool], Iterator[Check]]


def ddpm(kind: str, steps: int) -> Process:
    """DDPM's chain of `steps` steps with a `linear` or `cosine` schedule."""
    return make_process(DdpmProcess(num_train_timesteps=steps, schedule=CHAIN_SCHEDULES[kind]))


def max_relative_error(measured: Tensor, expected: Tensor) -> float:
    """The largest |measured - expected| / |expected|."""
    return float(((measured - expected) / expected).abs().max())


def convergence_order(sizes: tuple[int, ...], errors: list[float]) -> float:
    """The order p of errors proportional to sizes^-p, by least squares in logarithms.

    Args:
        sizes: numbers of steps.
        errors: the error at each, above 0.
    """
    log_n = torch.log(torch.tensor(sizes, dtype=torch.float64))
    centred = log_n - log_n.mean()
    log_errors = torch.log(torch.tensor(errors, dtype=torch.float64))
    return -float((centred * log_errors).sum() / centred.square().sum())
