"""The interface of every solver: it asks for evaluations of the network, and is given their results.

`want()` returns the rows to evaluate next, `feed(output)` takes the network's raw output for them. A solver never calls
a network itself, so rows of different requests can share one evaluation (sampler/batcher.py), and the result of a row
never depends on other rows. An algorithm is written as a generator, `Solver.steps`, that yields a `Wanted` and is sent
an `Estimate`.
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
    """Rows to evaluate with the network.

    Attributes:
        x: [B, C, H, W].
        t: times in the process's own time, float64 [B].
        label: int64 [B], or None.
    """

    x: Tensor
    t: Tensor
    label: Tensor | None


class Noise(Protocol):
    """Standard normal draws for the images of a solver."""

    def draw(self, index: int) -> Tensor:
        """The draw of the given index for every image, float32 [B, C, H, W]; the same index gives the same draw."""
        ...


@dataclass(frozen=True)
class ImageNoise:
    """Counter-based noise of (seed, image, draw): image i of a seed is the same in any batch.

    Attributes:
        seed: 0..2^64 - 1.
        images: index of each row's image under the seed, [B].
        shape: (C, H, W).
    """

    seed: int
    images: Sequence[int]
    shape: tuple[int, int, int]

    def draw(self, index: int) -> Tensor:
        """The draw of the given index for every image, float32 [B, C, H, W]."""
        keys = [(image, index) for image in self.images]
        return counter_normal(self.seed, Stream.SAMPLING_NOISE, keys, self.shape)


class Point(NamedTuple):
    """A time of the process, and the coefficients of equation (4) there; floats, or tensors [B, 1, 1, 1].

    Attributes:
        t: the time; [B] or broadcastable to it.
        alpha: alpha_t.
        sigma: sigma_t.
    """

    t: Coefficient
    alpha: Coefficient
    sigma: Coefficient


class Estimate(NamedTuple):
    """The network's estimates at a point, each the shape of x.

    Attributes:
        x_0: x_theta, clipped if the solver clips.
        epsilon: eps_theta, consistent with x_0.
        interpolation: of the reverse variance, None where that is not learned.
    """

    x_0: Tensor
    epsilon: Tensor
    interpolation: Tensor | None


class Wanted(NamedTuple):
    """What an algorithm yields: a request for an estimate.

    Attributes:
        x: rows [R, C, H, W].
        at: the point at which they are.
        rows: indices of the rows among the solver's, int64 [R], which select their labels; None for all rows in order.
    """

    x: Tensor
    at: Point
    rows: Tensor | None = None


Steps = Generator[Wanted, Estimate, None]


class Solver(ABC):
    """The state of a solver. It starts at t_max with x = prior_std times draw 0 of the noise.

    Args:
        options: the solver's configuration.
        denoiser: gives the process and the parameterization; its network is not called.
        noise: the images' own noise.
        label: int64 [B], or None.

    Attributes:
        x: current rows, [B, C, H, W] in the dtype of the noise; the result once `want()` returns None.
    """

    def __init__(self, options: SolverOptions, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
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
        """The algorithm, a generator: yields what to estimate, is sent the estimate, and leaves its result in `x`."""

    @torch.no_grad()
    def want(self) -> Query | None:
        """The next rows to evaluate, or None at the end; the same until `feed` is called."""
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
        """Take the network's raw output for the rows that `want()` returned, and go on to the next request."""
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
