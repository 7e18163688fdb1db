"""What every solver is: a state machine that says what to evaluate next and takes the answer.

`want()` gives the rows to evaluate, `feed(epsilon)` advances by one step. A solver never calls a network, so rows of
different requests can share one evaluation (sampler/batcher.py), and a row's result never depends on other rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.keyed import Stream, keyed_normal
from diffusion.prediction import epsilon_to_x0, x0_to_epsilon
from diffusion.schedule import Schedule


@dataclass(frozen=True)
class Query:
    """Rows to evaluate: x float32 [B, C, H, W] at steps t int64 [B]."""

    x: Tensor
    t: Tensor


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
        return keyed_normal(self.seed, Stream.SAMPLING_NOISE, keys, self.shape)


def time_grid(num_train_timesteps: int, num_steps: int) -> list[int]:
    """The steps visited, from T down to 0: evenly spaced and rounded, num_steps + 1 entries.

    Raises:
        ValueError: num_steps outside 1..T.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"solver.num_steps = {num_steps}; allowed: 1 to num_train_timesteps = {num_train_timesteps}")
    return [round(num_train_timesteps * (1 - i / num_steps)) for i in range(num_steps + 1)]


class Solver(ABC):
    """A solver's state: the rows `x` and the position on the time grid.

    Attributes:
        x: current rows, float32 [B, C, H, W]; the result once `want()` is None.
    """

    def __init__(self, schedule: Schedule, noise: ImageNoise, num_steps: int, clip_x0: bool) -> None:
        """Start at t = T from draw 0 of the noise; `clip_x0` holds every estimate of x_0 within [-1, 1]."""
        self.schedule = schedule
        self.noise = noise
        self.grid = time_grid(schedule.num_steps, num_steps)
        self.clip_x0 = clip_x0
        self.position = 0
        self.x = noise.draw(0)

    def want(self) -> Query | None:
        """The next rows to evaluate, or None at the end."""
        if self.position == len(self.grid) - 1:
            return None
        return Query(self.x, torch.full((len(self.x),), self.grid[self.position], dtype=torch.int64))

    def feed(self, epsilon: Tensor) -> None:
        """Take eps_theta of the rows `want()` gave, and step from t to s."""
        t, s = self.grid[self.position], self.grid[self.position + 1]
        alpha, sigma = self.schedule.alpha[t].to(epsilon), self.schedule.sigma[t].to(epsilon)
        x_0 = epsilon_to_x0(epsilon, self.x, alpha, sigma)
        if self.clip_x0:
            x_0 = x_0.clamp(-1, 1)
            epsilon = x0_to_epsilon(x_0, self.x, alpha, sigma)
        self.x = self.step(x_0, epsilon, t, s)
        self.position += 1

    @abstractmethod
    def step(self, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:
        """The rows at step s < t, from the estimates of x_0 and eps at t."""
