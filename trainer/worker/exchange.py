"""The average of all ranks' gradients in one exchange, for ranks that talk over gloo.

DeepSpeed reduces gradients in buckets, behind a hook of every parameter, while the backward pass goes on. A GPU does
both at once; a CPU that computes gains nothing by it, and pays for the hooks and for copying each gradient four times
over: a tenth of a step of a small network. Here each gradient is copied once, every rank sends the others their parts,
and adds up what it gets. (gloo's own reductions move twice as much.)
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Exchange:
    """Gradients end to end in one flat tensor, cut into one equal part a rank."""

    def __init__(self, parameters: Sequence[nn.Parameter], offsets: Sequence[int], numel: int) -> None:
        """Allocate the flat tensor.

        Args:
            parameters: those that are trained.
            offsets: where each one's gradient begins.
            numel: elements in total, padding included; a multiple of the number of ranks.
        """
        self._parameters, self._world = parameters, dist.get_world_size()
        self._flat = torch.zeros(numel, dtype=parameters[0].dtype)
        self._received = torch.empty_like(self._flat)
        self._places = [
            self._flat.narrow(0, offset, parameter.numel()).view_as(parameter)
            for parameter, offset in zip(parameters, offsets, strict=True)
        ]

    def own_part(self) -> Tensor:
        """This rank's part of the average over ranks, [numel / W]; collective. Takes the gradients from parameters."""
        for place, parameter in zip(self._places, self._parameters, strict=True):
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
                parameter.grad = None
        dist.all_to_all_single(self._received, self._flat)
        return self._received.view(self._world, -1).mean(0)
