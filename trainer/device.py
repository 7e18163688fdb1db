"""How a network meets its device: precision that means what it says, memory order, recomputation, compilation.

Nothing here changes what is computed beyond rounding, nor the names of parameters: checkpoints of runs with and without
go on in each other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ParallelConfig


def full_precision() -> None:
    """Have float32 mean float32: GPUs would otherwise convolve in TF32, with 10 bits of mantissa."""
    backends: Any = torch.backends
    for backend in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn):
        backend.fp32_precision = "ieee"


def prepare_network(network: nn.Module, parallel: ParallelConfig) -> None:
    """Set a network up for recomputation and compilation, in place.

    Args:
        network: as built, before the engine takes it.
        parallel: which of them are wanted.
    """
    if parallel.deepspeed.activation_checkpointing:
        diffusers: Any = network.model  # the UNet and the DiT are diffusers'
        diffusers.enable_gradient_checkpointing()
    if parallel.compile:
        network.compile()


def images_to(x: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """Images [R, C, H, W] on the device, from pinned memory without waiting, in the order that was asked for."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return x.to(device, non_blocking=True).contiguous(memory_format=order)
