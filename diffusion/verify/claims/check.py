"""A measured number beside the one that theory expects, and the claims that are made of them."""

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
    """One measured number.

    Attributes:
        what: in words.
        measured: by this code.
        expected: by the theory.
        tolerance: largest difference that passes.
    """

    what: str
    measured: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is as expected; a number that is none is not."""
        return abs(self.measured - self.expected) <= self.tolerance


@dataclass(frozen=True)
class Claim:
    """A numbered claim and the function that measures it; `quick` asks for less work."""

    number: int
    text: str
    checks: Callable[[bool], Iterator[Check]]


def ddpm(kind: str, steps: int) -> Process:
    """DDPM's chain with a linear or cosine schedule."""
    return make_process(DdpmProcess(num_train_timesteps=steps, schedule=CHAIN_SCHEDULES[kind]))


def max_relative_error(measured: Tensor, expected: Tensor) -> float:
    """The largest relative difference."""
    return float(((measured - expected) / expected).abs().max())


def convergence_order(sizes: tuple[int, ...], errors: list[float]) -> float:
    """p of errors ~ sizes^-p, by least squares in logarithms."""
    log_n = torch.log(torch.tensor(sizes, dtype=torch.float64))
    centred = log_n - log_n.mean()
    log_errors = torch.log(torch.tensor(errors, dtype=torch.float64))
    return -float((centred * log_errors).sum() / centred.square().sum())
