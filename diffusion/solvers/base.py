"""What every solver is: a state machine that says what to evaluate next and takes the answer.

`want()` gives the rows to evaluate, `feed(output)` takes the network's raw output for them. A solver never calls a
network, so rows of different requests can share one evaluation (sampler/batcher.py), and a row's result never depends
on other rows. An algorithm is written as a generator, `steps`, that yields what it wants an estimate of.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.config import SolverOptions
from diffusion.denoiser import Denoiser
from diffusion.prediction import Coefficient, x0_to_epsilon
from diffusion.rng import Stream, counter_normal


class Query(NamedTuple):
    """Rows to evaluate: x [B, C, H, W] at times t float64 [B], with labels int64 [B] or None."""

    x: Tensor
    t: Tensor
    label: Tensor | None


class Noise(Protocol):
    """Standard normal draws for the images of a solver."""

    def draw(self, index: int) -> Tensor:
        """The index-th draw of every image, float32 [B, C, H, W]."""
        ...


@dataclass(frozen=True)
class ImageNoise:
    """Noise keyed by (seed, image, draw): image i of a seed is the same image in any batch.

    Attributes:
        seed: 0..2^64 - 1.
        images: the index of each row's image under the seed.
        shape: (C, H, W).
    """

    seed: int
    images: Sequence[int]
    shape: tuple[int, int, int]

    def draw(self, index: int) -> Tensor:
        """The index-th draw of every image, float32 [B, C, H, W]."""
        keys = [(image, index) for image in self.images]
        return counter_normal(self.seed, Stream.SAMPLING_NOISE, keys, self.shape)


class Point(NamedTuple):
    """Where x is: its time and the coefficients of equation (4) there, numbers or [B, 1, 1, 1]."""

    t: Coefficient
    alpha: Coefficient
    sigma: Coefficient


class Estimate(NamedTuple):
    """What the network says at a point: x_0 and eps, and the interpolation of the reverse variance where learned."""

    x_0: Tensor
    epsilon: Tensor
    interpolation: Tensor | None


class Wanted(NamedTuple):
    """What an algorithm yields: rows x at a point; `rows` picks their labels where they are not all rows."""

    x: Tensor
    at: Point
    rows: Tensor | None = None


Steps = Generator[Wanted, Estimate, None]


class Solver(ABC):
    """A solver's state.

    Attributes:
        x: current rows, [B, C, H, W] in the dtype of the noise; the result once `want()` is None.
    """

    def __init__(self, options: SolverOptions, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        """Start at the time of most noise, from draw 0.

        Args:
            options: the solver's configuration.
            denoiser: says how outputs are read, and of which process; its network is not called.
            noise: the images' own noise.
            label: int64 [B], or None.
        """
        self.options = options
        self.process = denoiser.process
        self.noise = noise
        self.x: Tensor = self.process.prior_std * noise.draw(0)
        self._denoiser = denoiser
        self._label = label
        self._running: Steps | None = None
        self._wanted: Wanted | None = None

    @abstractmethod
    def steps(self) -> Steps:
        """The algorithm: yields what to estimate, is sent the estimate, leaves its result in `x`."""

    @torch.no_grad()
    def want(self) -> Query | None:
        """The next rows to evaluate, or None at the end."""
        if self._running is None:
            self._running = self.steps()
            self._wanted = next(self._running, None)
        if self._wanted is None:
            return None
        x, at, rows = self._wanted
        t = at.t.flatten() if isinstance(at.t, Tensor) else torch.full((len(x),), at.t, dtype=torch.float64)
        return Query(x, t, self._label if rows is None or self._label is None else self._label[rows])

    @torch.no_grad()
    def feed(self, output: Tensor) -> None:
        """Take the network's raw output for the rows that `want()` gave, and go on to the next question."""
        assert self._running is not None, "want() comes before feed()"
        assert self._wanted is not None, "nothing was wanted"
        estimate = self._estimate(output, self._wanted)
        try:
            self._wanted = self._running.send(estimate)
        except StopIteration:
            self._wanted = None

    def _estimate(self, output: Tensor, wanted: Wanted) -> Estimate:
        x, (_, alpha, sigma), _ = wanted
        output, interpolation = self._denoiser.split(output.to(x))
        parameterization = self._denoiser.parameterization
        x_0 = parameterization.x0(output, x, alpha, sigma)
        if self.options.clip_x0:
            x_0 = x_0.clamp(-1, 1)
            return Estimate(x_0, x0_to_epsilon(x_0, x, alpha, sigma), interpolation)
        return Estimate(x_0, parameterization.epsilon(output, x, alpha, sigma), interpolation)
