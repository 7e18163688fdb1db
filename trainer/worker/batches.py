"""Loads batches one step ahead, in a thread, while the network is busy with the current step.

A batch depends on (config, step) alone, so loading it early changes nothing. Importance sampling of t is the exception:
there the times t depend on the losses of the previous step, and a batch is built when it is asked for.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from diffusion.images import to_model_range
from diffusion.likelihood.quantization import dequantise
from trainer.worker import spans
from trainer.worker.augment import augmented
from trainer.worker.batch_plan import BatchPlan, PlannedRows


@dataclass(frozen=True)
class Batch:
    """One rank's rows of one step.

    Attributes:
        rows: times, noise, masks and importance weights of the rows.
        x_0: augmented images in [-1, 1], float32 [R, C, H, W].
        label: class labels, dropped ones replaced by the null label, int64 [R]; None for a network without classes.
    """

    rows: PlannedRows
    x_0: Tensor
    label: Tensor | None


class BatchLoader:
    """Loads the batches of one rank.

    Attributes:
        plan: the run's random draws.
    """

    def __init__(
        self,
        plan: BatchPlan,
        images: Any,  # noqa: ANN401 - an array
        labels: Tensor | None,
        classes: int,
        device: torch.device,
    ) -> None:
        """Keep references to the data; nothing is loaded yet.

        Args:
            plan: the run's random draws.
            images: training images, uint8 [N, H, W, C].
            labels: class labels, int64 [N]; None for a network without classes.
            classes: number of classes, which is also the null label.
            device: device that batches are copied to later; for a GPU they are put in pinned memory.
        """
        self.plan = plan
        self._images, self._labels, self._classes = images, labels, classes
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[tuple[int, int, int], Future[Batch]] | None = None

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Rows [first, first + count) of the global batch of `step` >= 1; starts loading those of the next step."""
        if self.plan.moments:
            return self._make(step, first, count)
        wanted, ahead = (step, first, count), self._ahead
        batch = ahead[1].result() if ahead and ahead[0] == wanted else self._make(*wanted)
        following = (step + 1, first, count)
        self._ahead = (following, self._thread.submit(self._make, *following))
        return batch

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int, first: int, count: int) -> Batch:
        with record_function(spans.DRAWS):
            rows = self.plan.rows(step, first, count)
        with record_function(spans.IMAGES):
            return self._load(rows)

    def _load(self, rows: PlannedRows) -> Batch:
        pixels = augmented(
            self._images[rows.images], rows.flipped, rows.crop_offset, self.plan.training.augment.crop_padding
        )
        x_0 = to_model_range(pixels)
        if rows.u is not None:
            x_0 = dequantise(x_0, rows.u).float()
        if self._pinned:
            x_0, rows = x_0.pin_memory(), replace(rows, eps=rows.eps.pin_memory())
        return Batch(rows, x_0, self._labels_of(rows))

    def _labels_of(self, rows: PlannedRows) -> Tensor | None:
        if self._labels is None:
            return None
        null_label = torch.full_like(rows.drop_label, self._classes, dtype=torch.int64)
        return torch.where(rows.drop_label, null_label, self._labels[rows.images])
