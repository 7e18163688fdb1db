"""Which images, which t and which noise a training step uses: functions of (seed, step, row) alone.

Rows are numbered within the global batch. A rank takes a range of rows, so the draws of a step are the same on any
number of workers, with any accumulation and after any restart; the position in the data is the step itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.config import TimeSamplingConfig
from diffusion.keyed import Stream, keyed_generator, keyed_normal
from diffusion.time_sampling import draw_timesteps


@dataclass(frozen=True)
class Rows:
    """What some rows of one global batch are made of.

    Attributes:
        images: row numbers in the data set, int64 [R].
        t: steps, int64 [R].
        eps: noise, float32 [R, C, H, W].
        weight: 1 for a real row, 0 for padding, float32 [R].
    """

    images: NDArray[np.int64]
    t: Tensor
    eps: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Attributes:
        seed: the run's seed.
        dataset_size: number of training images N.
        batch_size: rows in the global batch B; training reads the epochs' permutations end to end, B at a time.
        num_steps: T.
        time_sampling: how t is drawn.
        image_shape: (C, H, W).
    """

    seed: int
    dataset_size: int
    batch_size: int
    num_steps: int
    time_sampling: TimeSamplingConfig
    image_shape: tuple[int, int, int]

    def rows(self, step: int, first: int, count: int) -> Rows:
        """Rows [first, first + count) of global step `step` >= 1; rows beyond the batch are padding of weight 0."""
        numbers = np.arange(first, first + count)
        real = numbers < self.batch_size
        numbers = np.where(real, numbers, 0)
        generator = keyed_generator(self.seed, Stream.TIMESTEPS, step)
        t = draw_timesteps(self.time_sampling, generator, self.batch_size, self.num_steps)[numbers]
        keys = [(step, int(number)) for number in numbers]
        return Rows(
            images=self._images((step - 1) * self.batch_size + numbers),
            t=torch.from_numpy(t),
            eps=keyed_normal(self.seed, Stream.TRAINING_NOISE, keys, self.image_shape),
            weight=torch.from_numpy(real.astype(np.float32)),
        )

    def _images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, places = np.divmod(positions, self.dataset_size)
        orders = [_epoch_order(self.seed, int(epoch), self.dataset_size) for epoch in epochs]
        return np.array([order[place] for order, place in zip(orders, places, strict=True)], dtype=np.int64)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return keyed_generator(seed, Stream.EPOCH_ORDER, epoch).permutation(size)
