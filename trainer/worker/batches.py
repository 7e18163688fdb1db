"""The rows of each step, made one step ahead in a thread while the network is busy with the step before.

What a step is made of depends on (config, step) alone, so looking ahead changes nothing. Importance sampling of t is
the exception: there a step's t depends on the losses of the step before, and rows are made when they are asked for.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.images import to_model_range
from diffusion.likelihood.quantization import dequantise
from trainer.worker.augment import augmented
from trainer.worker.batch_plan import Draws, Rows


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one step.

    Attributes:
        rows: their t, noise and weights.
        x_0: images in [-1, 1], as they are changed for this step, float32 [R, C, H, W].
        label: what the network is told, int64 [R]; None for a network without classes.
    """

    rows: Rows
    x_0: Tensor
    label: Tensor | None


class Feed:
    """The batches of one rank.

    Attributes:
        draws: the run's.
    """

    def __init__(
        self,
        draws: Draws,
        images: Any,  # noqa: ANN401 - an array
        labels: Tensor | None,
        classes: int,
        device: torch.device,
    ) -> None:
        """Name what batches are made of.

        Args:
            draws: the run's.
            images: uint8 [N, H, W, C].
            labels: int64 [N], or None for a network without classes.
            classes: also the label that stands for "not told".
            device: where batches go; for a GPU they are pinned.
        """
        self.draws = draws
        self._images, self._labels, self._classes = images, labels, classes
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[tuple[int, int, int], Future[Batch]] | None = None

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Rows [first, first + count) of the global batch of `step` >= 1, and a start on those of the next."""
        if self.draws.moments:
            return self._make(step, first, count)
        wanted, ahead = (step, first, count), self._ahead
        batch = ahead[1].result() if ahead and ahead[0] == wanted else self._make(*wanted)
        following = (step + 1, first, count)
        self._ahead = (following, self._thread.submit(self._make, *following))
        return batch

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int, first: int, count: int) -> Batch:
        rows = self.draws.rows(step, first, count)
        pixels = augmented(
            self._images[rows.images], rows.flipped, rows.corner, self.draws.training.augment.crop_padding
        )
        x_0 = to_model_range(pixels)
        if rows.u is not None:
            x_0 = dequantise(x_0, rows.u).float()
        if self._pinned:
            x_0, rows = x_0.pin_memory(), replace(rows, eps=rows.eps.pin_memory())
        return Batch(rows, x_0, self._shown(rows))

    def _shown(self, rows: Rows) -> Tensor | None:
        if self._labels is None:
            return None
        hidden = torch.full_like(rows.hidden, self._classes, dtype=torch.int64)
        return torch.where(rows.hidden, hidden, self._labels[rows.images])
