"""Builds the networks that a configuration may name.

diffusers is imported here and in `diffusion/interop/`, nowhere else in `diffusion/`.

Every network is an nn.Module that maps x [B, C, H, W], float time [B] and, if it has labels, label int64 [B] to a
tensor of the shape of x, or of twice its channels with a learned reverse variance. Labels 0..classes - 1 are the
data's; label `classes` means "no label".
"""

import math
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffusion.config import DiTConfig, MLPConfig, NetworkConfig, UNetConfig

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class UNet(nn.Module):
    """diffusers' UNet2DModel as a plain function of (x, time, label).

    Args:
        model: built by `build_unet`, or loaded from a diffusers folder.
    """

    def __init__(self, model: "UNet2DModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw output [B, out_channels, H, W] for rows x."""
        return self.model(x, time, class_labels=label, return_dict=False)[0]


def build_unet(config: UNetConfig, shape: tuple[int, int, int], out_channels: int) -> UNet:
    """A UNet for images of `shape` (C, H, W); each further resolution halves H and W.

    Args:
        config: widths, attention and classes.
        shape: (C, H, W).
        out_channels: C, or 2 C with a learned reverse variance.

    Raises:
        ValueError: H or W cannot be halved that often.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    channels, height, width = shape
    config.check_image(height, width)
    return UNet(
        UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=out_channels,
            block_out_channels=config.channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            attention_head_dim=config.head_width,
            dropout=config.dropout,
            num_class_embeds=config.classes + 1 if config.classes else None,
        )
    )


class DiT(nn.Module):
    """diffusers' DiTTransformer2DModel as a plain function of (x, time, label) (Peebles & Xie, 2023).

    As in the paper, the last row of the label embedding means "no label"; rows without a label use it, and without
    classes it is the only row.

    Args:
        config: patch size, depth, heads and classes.
        shape: (C, H, W).
        out_channels: C, or 2 C with a learned reverse variance.

    Raises:
        ValueError: images that are not squares of whole patches.
    """

    def __init__(self, config: DiTConfig, shape: tuple[int, int, int], out_channels: int) -> None:
        from diffusers.models.embeddings import LabelEmbedding
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        super().__init__()
        channels, height, width = shape
        config.check_image(height, width)
        self.model = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            in_channels=channels,
            out_channels=out_channels,
            num_layers=config.layers,
            sample_size=height,
            patch_size=config.patch_size,
            num_embeds_ada_norm=config.classes,  # to which diffusers adds the row for none
        )
        self.null_label = config.classes
        for module in self.model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # labels are dropped by key in training, not at random here

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw output [B, out_channels, H, W] for rows x."""
        if label is None:
            label = torch.full((len(x),), self.null_label, dtype=torch.int64, device=x.device)
        return self.model(x, timestep=time, class_labels=label, return_dict=False)[0]


class MLP(nn.Module):
    """A residual perceptron on flattened rows, with sinusoidal features of time and an embedding of the label.

    Args:
        config: width, depth and classes.
        shape: (C, H, W).
        out_channels: C, or 2 C with a learned reverse variance.
    """

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], out_channels: int) -> None:
        super().__init__()
        self.out_shape = (out_channels, *shape[1:])
        self.frequencies = config.width // 2
        self.enter = nn.Linear(math.prod(shape) + 2 * self.frequencies, config.width)
        self.label = nn.Embedding(config.classes + 1, config.width) if config.classes else None
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.leave = nn.Linear(config.width, math.prod(self.out_shape))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw output [B, out_channels, H, W] for rows x."""
        rates = torch.exp(
            torch.arange(self.frequencies, device=x.device, dtype=x.dtype) * (-math.log(1e4) / self.frequencies)
        )
        angles = time.to(x.dtype)[:, None] * rates
        h = self.enter(torch.cat([x.flatten(1), angles.sin(), angles.cos()], dim=1))
        if self.label is not None:
            h = h + self.label(label)
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        return self.leave(nn.functional.silu(h)).reshape(-1, *self.out_shape)


def build_network(config: NetworkConfig, shape: tuple[int, int, int], learned_variance: bool = False) -> nn.Module:
    """A freshly initialised float32 network for images of `shape`.

    Args:
        config: which network, and its size.
        shape: (C, H, W).
        learned_variance: give twice as many output channels as input channels.

    Raises:
        ValueError: the network does not fit the shape.
    """
    out_channels = shape[0] * (2 if learned_variance else 1)
    if isinstance(config, UNetConfig):
        return build_unet(config, shape, out_channels)
    if isinstance(config, DiTConfig):
        return DiT(config, shape, out_channels)
    return MLP(config, shape, out_channels)
