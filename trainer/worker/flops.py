"""How much arithmetic a training image takes, and how much the device can do: both counted or measured, not looked up.

Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) is the one over the other. As there, FLOPs are those of
matrix products, convolutions and attention, the backward pass counts twice the forward pass, and what is computed again
to save memory does not count.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion.config import NetworkConfig
from diffusion.network import build_network

SIZES = {"cpu": 512, "cuda": 8192}
CONVOLUTION = {"cpu": (4, 64, 32), "cuda": (16, 512, 64)}
MEASURED_S = 0.05


def flops_per_image(network: NetworkConfig, image_shape: tuple[int, int, int], learned_variance: bool) -> float:
    """FLOPs of a training step for each image, counted on a network that has shapes and no numbers."""
    with torch.device("meta"):
        built = build_network(network, image_shape, learned_variance)
        label = torch.zeros(1, dtype=torch.int64) if network.classes else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(torch.zeros(1, *image_shape), torch.zeros(1), label)
    return 3.0 * counter.get_total_flops()


def best_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of the device at its best: the faster of a matrix product and a convolution, as measured now."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = max(best_matmul(device, dtype), best_convolution(device, dtype))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def best_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of those that fit into a twentieth of a second."""
    size = SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _fastest(lambda: left @ right, device)


def best_convolution(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a 3x3 convolution with many channels, channels last, the best of those that fit."""
    batch, channels, side = CONVOLUTION[device.type]
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    flops = 2.0 * batch * channels**2 * 9 * side**2
    return flops / _fastest(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device)


@torch.no_grad()
def _fastest(action: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that is not timed."""
    action()
    _wait(device)
    fastest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < MEASURED_S:
        since = time.perf_counter()
        action()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - since)
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
