"""The images, augmentations, times t and noise of each training step: functions of (seed, step, row) alone.

Importance sampling of t is the exception: it also depends on the losses so far, so checkpoints store their statistics.

Rows are numbered within the global batch and each rank takes a range of rows, so a step's random draws are the same for
any number of workers, any gradient accumulation and after any restart; the position in the data is the step number.
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
class PlannedRows:
    """R rows of one global batch, before the images are loaded.

    Attributes:
        images: indices of images in the training set, int64 [R].
        t: times, float64 [R].
        eps: standard normal noise, float32 [R, C, H, W].
        row_mask: 1 for a real row, 0 for padding, float32 [R].
        importance: importance weight of the row's loss under the sampling of t, float32 [R]; 1 on average.
        drop_label: whether the row's label is replaced by the null label, bool [R].
        flipped: whether the image is mirrored left to right, bool [R].
        crop_offset: first row and column of the crop in the padded image, int64 [R, 2].
        u: dequantisation noise, uniform on [0, 1), float32 [R, C, H, W]; None without dequantisation.
    """

    images: NDArray[np.int64]
    t: Tensor
    eps: Tensor
    row_mask: Tensor
    importance: Tensor
    drop_label: Tensor
    flipped: NDArray[np.bool_]
    crop_offset: NDArray[np.int64]
    u: Tensor | None


@dataclass(frozen=True)
class BatchPlan:
    """All random draws of a run, as a function of the step.

    Images are drawn without replacement: training reads each epoch's permutation, one global batch at a time.

    Attributes:
        seed: the run's seed.
        dataset_size: number of training images N.
        training: training settings: global batch size B, augmentation and dequantisation.
        process: diffusion process, which maps fractions of the time interval to times t.
        objective: objective settings: how t is sampled, and how often labels are dropped.
        image_shape: (C, H, W).
        moments: statistics of the losses so far, for importance sampling of t; None where t is not sampled that way.
    """

    seed: int
    dataset_size: int
    training: TrainingConfig
    process: Process
    objective: ObjectiveConfig
    image_shape: tuple[int, int, int]
    moments: LossMoments | None = None

    def rows(self, step: int, first: int, count: int) -> PlannedRows:
        """Rows [first, first + count) of global step `step` >= 1; rows beyond the batch are padding."""
        batch_size, augment = self.training.global_batch_size, self.training.augment
        numbers = np.arange(first, first + count)
        real = numbers < batch_size
        numbers = np.where(real, numbers, 0)
        fractions, importance = self.time_fractions(step)
        drop_label = counter_generator(self.seed, Stream.LABEL_DROPOUT, step).random(batch_size)
        keys = [(step, int(number)) for number in numbers]
        changes = counter_generator(self.seed, Stream.AUGMENTATION, step)
        flipped = changes.random(batch_size) < (0.5 if augment.horizontal_flip else 0.0)
        crop_offset = changes.integers(0, 2 * augment.crop_padding, (batch_size, 2), endpoint=True)
        uniform = self.training.dequantise == "uniform"
        return PlannedRows(
            images=self._images((step - 1) * batch_size + numbers),
            t=self.process.time_from_fraction(torch.from_numpy(fractions[numbers])),
            eps=counter_normal(self.seed, Stream.TRAINING_NOISE, keys, self.image_shape),
            row_mask=torch.from_numpy(real.astype(np.float32)),
            importance=torch.from_numpy(importance[numbers].astype(np.float32)),
            drop_label=torch.from_numpy(drop_label[numbers] < self.objective.label_dropout),
            flipped=flipped[numbers],
            crop_offset=crop_offset[numbers],
            u=counter_uniform(self.seed, Stream.DEQUANTISATION, keys, self.image_shape) if uniform else None,
        )

    def time_fractions(self, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times of a global batch as fractions of the time interval, and importance weights; float64 [B] each."""
        batch_size = self.training.global_batch_size
        generator = counter_generator(self.seed, Stream.TIMESTEPS, step)
        fractions = draw_time_fractions(self.objective.time_sampling, generator, batch_size)
        return self.moments.draw(fractions) if self.moments else (fractions, np.ones(batch_size))

    def _images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, places = np.divmod(positions, self.dataset_size)
        orders = [_epoch_order(self.seed, int(epoch), self.dataset_size) for epoch in epochs]
        return np.array([order[place] for order, place in zip(orders, places, strict=True)], dtype=np.int64)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return counter_generator(seed, Stream.EPOCH_ORDER, epoch).permutation(size)
