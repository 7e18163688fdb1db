"""Which images, changed how, which t and which noise a training step uses: functions of (seed, step, row) alone.

Importance sampling of t is the exception: it also depends on the losses so far, which checkpoints therefore hold.

Rows are numbered within the global batch. A rank takes a range of rows, so the draws of a step are the same on any
number of workers, with any accumulation and after any restart; the position in the data is the step itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.config import ObjectiveConfig
from diffusion.process.sde import Process
from diffusion.rng import Stream, counter_generator, counter_normal, counter_uniform
from diffusion.time_sampling import LossMoments, draw_time_fractions
from trainer.config.training import TrainingConfig


@dataclass(frozen=True)
class Rows:
    """What some rows of one global batch are made of.

    Attributes:
        images: row numbers in the data set, int64 [R].
        t: times, float64 [R].
        eps: noise, float32 [R, C, H, W].
        weight: 1 for a real row, 0 for padding, float32 [R].
        importance: what a row's loss counts for having been drawn more or less often, float32 [R]; 1 on average.
        hidden: whether the row's label is hidden from the network, bool [R].
        flipped: whether the image is mirrored, bool [R].
        corner: where the image is cropped out of the padded one, int64 [R, 2] in rows and columns.
        u: uniform on [0, 1), what is added to the levels, float32 [R, C, H, W]; None where they stay as they are.
    """

    images: NDArray[np.int64]
    t: Tensor
    eps: Tensor
    weight: Tensor
    importance: Tensor
    hidden: Tensor
    flipped: NDArray[np.bool_]
    corner: NDArray[np.int64]
    u: Tensor | None


@dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Attributes:
        seed: the run's seed.
        dataset_size: number of training images N.
        training: how many rows B the global batch has, and how images are changed; training reads the epochs'
            permutations end to end, B at a time.
        process: whose times are drawn.
        objective: how they are, and how often labels are hidden.
        image_shape: (C, H, W).
        moments: of the losses so far, where t is drawn by importance.
    """

    seed: int
    dataset_size: int
    training: TrainingConfig
    process: Process
    objective: ObjectiveConfig
    image_shape: tuple[int, int, int]
    moments: LossMoments | None = None

    def rows(self, step: int, first: int, count: int) -> Rows:
        """Rows [first, first + count) of global step `step` >= 1; rows beyond the batch are padding of weight 0."""
        batch_size, augment = self.training.global_batch_size, self.training.augment
        numbers = np.arange(first, first + count)
        real = numbers < batch_size
        numbers = np.where(real, numbers, 0)
        shares, importance = self.shares(step)
        hidden = counter_generator(self.seed, Stream.LABEL_DROPOUT, step).random(batch_size)
        keys = [(step, int(number)) for number in numbers]
        changes = counter_generator(self.seed, Stream.AUGMENTATION, step)
        flipped = changes.random(batch_size) < (0.5 if augment.horizontal_flip else 0.0)
        corner = changes.integers(0, 2 * augment.crop_padding, (batch_size, 2), endpoint=True)
        uniform = self.training.dequantise == "uniform"
        return Rows(
            images=self._images((step - 1) * batch_size + numbers),
            t=self.process.time_from_fraction(torch.from_numpy(shares[numbers])),
            eps=counter_normal(self.seed, Stream.TRAINING_NOISE, keys, self.image_shape),
            weight=torch.from_numpy(real.astype(np.float32)),
            importance=torch.from_numpy(importance[numbers].astype(np.float32)),
            hidden=torch.from_numpy(hidden[numbers] < self.objective.label_dropout),
            flipped=flipped[numbers],
            corner=corner[numbers],
            u=counter_uniform(self.seed, Stream.DEQUANTISATION, keys, self.image_shape) if uniform else None,
        )

    def shares(self, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How far the t of each row of the global batch is on its way, and its importance weight; [B] each."""
        batch_size = self.training.global_batch_size
        generator = counter_generator(self.seed, Stream.TIMESTEPS, step)
        shares = draw_time_fractions(self.objective.time_sampling, generator, batch_size)
        return self.moments.draw(shares) if self.moments else (shares, np.ones(batch_size))

    def _images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, places = np.divmod(positions, self.dataset_size)
        orders = [_epoch_order(self.seed, int(epoch), self.dataset_size) for epoch in epochs]
        return np.array([order[place] for order, place in zip(orders, places, strict=True)], dtype=np.int64)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return counter_generator(seed, Stream.EPOCH_ORDER, epoch).permutation(size)
