"""Recomputed activations are the same ones, and take less memory; images arrive in the order that was asked for."""

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from diffusion.config import DiTConfig, NetworkConfig, UNetConfig
from diffusion.network import build_network
from trainer.config import DeepSpeedConfig, ParallelConfig
from trainer.device import full_precision, images_to, prepare_network

UNET = UNetConfig(channels=(16, 32), attention=(False, True), norm_groups=4, dropout=0.2, classes=3)
DIT = DiTConfig(layers=3, heads=2, head_width=8, patch_size=2, classes=3)
RECOMPUTED = ParallelConfig(deepspeed=DeepSpeedConfig(activation_checkpointing=True))


def gradients(config: NetworkConfig, parallel: ParallelConfig) -> tuple[list[torch.Tensor], int]:
    """Gradients of a network's output, and how many bytes were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config, (3, 16, 16))
        prepare_network(network, parallel)
        x, time, label = torch.randn(8, 3, 16, 16), torch.linspace(1, 900, 8), torch.arange(8) % 4
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(x, time, label)
        output.square().mean().backward()
    return [p.grad for p in network.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(config):
    """Bit by bit, dropout included."""
    kept, kept_bytes = gradients(config, ParallelConfig())
    recomputed, recomputed_bytes = gradients(config, RECOMPUTED)
    assert len(kept) == len(recomputed) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, kept, strict=True))
    assert recomputed_bytes < 0.6 * kept_bytes


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_arrive_whole_and_in_order(channels_last):
    x = torch.randn(5, 3, 4, 6)
    there = images_to(x[1:4], torch.device("cpu"), channels_last)
    assert torch.equal(there, x[1:4])
    assert there.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_float32_is_not_rounded_to_tf32():
    backends: Any = torch.backends
    backends.cudnn.conv.fp32_precision = "tf32"
    full_precision()
    assert (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision) == ("ieee", "ieee")
