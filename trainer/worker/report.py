"""What a step came to: read from the device one step late, so that the host never waits for the step at hand."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step came to, the same on all ranks.

    Attributes:
        step: the training step.
        losses: each rank's loss.
        stop: whether rank 0 was asked to stop.
        norm: 2-norm of the global gradient before clipping.
        taken: whether the step was taken; if not, nothing has moved.
        window: what `Meters.reduce` returned, if a window of metrics ends with this step.
        time: when the step's last work was handed to the device, by `time.perf_counter`.
    """

    step: int
    losses: list[float]
    stop: bool
    norm: float
    taken: bool
    window: list[float]
    time: float


class Report:
    """What a step came to, on its way from the device to the host.

    Attributes:
        step: the training step.
    """

    def __init__(self, step: int, losses: Tensor, norm: Tensor, taken: Tensor, window: Tensor | None) -> None:
        """Start the copy to the host.

        Args:
            step: the training step.
            losses: `StepOutputs.losses`.
            norm: 2-norm of the gradient, [].
            taken: whether the step was taken, bool [].
            window: the window of metrics that ends here (`Meters.reduce`); None if none does.
        """
        self.step, self._world, self._time = step, len(losses), time.perf_counter()
        parts = [losses.flatten(), norm.float().reshape(1), taken.float().reshape(1)]
        values = torch.cat(parts if window is None else [*parts, window])
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        self._values = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
        self._values.copy_(values, non_blocking=True)
        if self._arrived:
            self._arrived.record()

    def read(self) -> StepResult:
        """Wait until it has arrived."""
        if self._arrived:
            self._arrived.synchronize()
        values: list[float] = self._values.tolist()
        losses, stops = values[: 2 * self._world : 2], values[1 : 2 * self._world : 2]
        norm, taken, *window = values[2 * self._world :]
        return StepResult(self.step, losses, stops[0] > 0, norm, taken > 0, window, self._time)
