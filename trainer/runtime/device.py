"""How a network is set up for training on its device: memory order, recomputation, compilation.

Nothing here changes what is computed beyond rounding and, in another memory order or compiled, which numbers dropout
draws; nor the names of parameters: checkpoints of runs with and without go on in each other.
"""

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.parallel import ParallelConfig


def require_compiler(device: torch.device) -> None:
    """Refuse torch.compile before training where it cannot work.

    Raises:
        ValueError: this node has no C++ compiler, or, for GPUs, no Triton.
    """
    compiler = os.environ.get("CXX", "g++")
    available = find_spec("triton") is not None if device.type == "cuda" else shutil.which(compiler) is not None
    if not available:
        missing = "the package triton" if device.type == "cuda" else f"a C++ compiler ({compiler}; CXX names another)"
        raise ValueError(f"parallel.compile = True: this node lacks {missing}; allowed: false, or nodes that have it")


def prepare_network(network: nn.Module, parallel: ParallelConfig) -> None:
    """Set a network up for its memory order, recomputation and compilation, in place.

    Args:
        network: as built, before the engine takes it.
        parallel: settings that say which of the three are used.
    """
    if parallel.channels_last:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(_channels_last)
    if parallel.deepspeed.activation_checkpointing:
        diffusers: Any = network.model  # the UNet and the DiT are diffusers'
        diffusers.enable_gradient_checkpointing()
    if parallel.compile:
        network.compile()


def _channels_last(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    """Before every convolution: attention, concatenation and images of one channel each lose the order."""
    return (arguments[0].contiguous(memory_format=torch.channels_last),)
