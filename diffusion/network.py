"""Builds the networks that a configuration may name; the only module of `diffusion/` that knows diffusers.

Every network is an nn.Module mapping (x [B, C, H, W], t int64 [B]) to a tensor of x's shape.
"""

import math
import os

import torch
from torch import Tensor, nn

from diffusion.config import MLPConfig, NetworkConfig, UNetConfig

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class UNet(nn.Module):
    """diffusers' UNet2DModel as a plain function of (x, t)."""

    def __init__(self, config: UNetConfig, shape: tuple[int, int, int]) -> None:
        """Build for images of `shape` (C, H, W); each further resolution halves H and W.

        Raises:
            ValueError: H or W cannot be halved that often.
        """
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__()
        channels, height, width = shape
        config.check_image(height, width)
        self.model = UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            attention_head_dim=None,
            dropout=config.dropout,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output for rows x at steps t."""
        return self.model(x, t, return_dict=False)[0]


class MLP(nn.Module):
    """Residual perceptron on flattened rows with sinusoidal features of t."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int]) -> None:
        """Build for rows of `shape` (C, H, W)."""
        super().__init__()
        self.frequencies = config.width // 2
        self.enter = nn.Linear(math.prod(shape) + 2 * self.frequencies, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.leave = nn.Linear(config.width, math.prod(shape))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output for rows x at steps t."""
        rates = torch.exp(
            torch.arange(self.frequencies, device=x.device, dtype=x.dtype) * (-math.log(1e4) / self.frequencies)
        )
        angles = t.to(x.dtype)[:, None] * rates
        h = self.enter(torch.cat([x.flatten(1), angles.sin(), angles.cos()], dim=1))
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        return self.leave(nn.functional.silu(h)).reshape(x.shape)


def build_network(config: NetworkConfig, shape: tuple[int, int, int]) -> nn.Module:
    """A freshly initialised network for images of `shape` (C, H, W), float32.

    Raises:
        ValueError: the network does not fit the shape.
    """
    return UNet(config, shape) if isinstance(config, UNetConfig) else MLP(config, shape)
