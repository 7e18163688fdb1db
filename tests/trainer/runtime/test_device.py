"""Recomputed activations are the same ones, and take less memory; convolutions get images in the order asked for."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from diffusion.config import DiTConfig, NetworkConfig, UNetConfig
from diffusion.device import full_precision
from diffusion.network import build_network
from trainer.config.parallel import DeepSpeedConfig, ParallelConfig
from trainer.runtime.device import prepare_network, require_compiler

UNET = UNetConfig(channels=(16, 32), attention=(False, True), norm_groups=4, dropout=0.2, classes=3)
DIT = DiTConfig(layers=3, heads=2, head_width=8, patch_size=2, classes=3)
RECOMPUTED = ParallelConfig(deepspeed=DeepSpeedConfig(activation_checkpointing=True))


def gradients(
    config: NetworkConfig, parallel: ParallelConfig, channels: int = 3, bf16: bool = False
) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a network's output, and how many bytes were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config, (channels, 16, 16))
        prepare_network(network, parallel)
        x, time, label = torch.randn(8, channels, 16, 16), torch.linspace(1, 900, 8), torch.arange(8) % 4
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(x, time, label)
        output.float().square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients, sum(kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(config, bf16):
    """Bit by bit, dropout included."""
    kept, kept_bytes = gradients(config, ParallelConfig(), bf16=bf16)
    recomputed, recomputed_bytes = gradients(config, RECOMPUTED, bf16=bf16)
    assert recomputed.keys() == kept.keys() != set()
    assert all(torch.equal(recomputed[name], kept[name]) for name in kept)
    assert recomputed_bytes < 0.6 * kept_bytes


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_convolution_gets_channels_last_and_gives_what_it_did(channels, recomputed):
    """Images of one channel are in both orders at once, and attention and concatenation give up the order."""
    config = UNET.model_copy(update={"dropout": 0.0})
    parallel = ParallelConfig(channels_last=True, deepspeed=DeepSpeedConfig(activation_checkpointing=recomputed))
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, arguments: tuple[torch.Tensor], _: Any) -> None:
        if isinstance(module, nn.Conv2d):
            seen.append(arguments[0])

    with nn.modules.module.register_module_forward_hook(look):
        reordered, _ = gradients(config, parallel, channels)
    assert len(seen) > 20
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    plain, _ = gradients(config, ParallelConfig(), channels)
    assert reordered.keys() == plain.keys()
    for name, gradient in plain.items():
        if not name.endswith("to_k.bias"):  # whose true gradient is zero
            difference = torch.linalg.vector_norm(reordered[name] - gradient)
            assert difference <= 1e-5 * torch.linalg.vector_norm(gradient), name


def test_float32_is_not_rounded_to_tf32():
    backends: Any = torch.backends
    backends.cudnn.conv.fp32_precision = "tf32"
    full_precision()
    assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (False, False)
    assert (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision) == ("ieee", "ieee")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_node_that_cannot_compile_says_so_before_training(device, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("trainer.runtime.device.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^parallel\.compile = True: this node lacks .*; allowed: false"):
        require_compiler(torch.device(device))
    (tmp_path / "c++20").touch(0o755)
    monkeypatch.setenv("CXX", "c++20")
    monkeypatch.setattr("trainer.runtime.device.find_spec", lambda _: True)
    require_compiler(torch.device(device))
