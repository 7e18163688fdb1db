"""Conversion between 8-bit pixels and the model's range [-1, 1], and contact sheets of images.

A pixel p in 0..255 is x = 2 p / 255 - 1. Batches are [N, C, H, W] tensors for the model and [N, H, W, C] uint8 arrays
for viewing and storage.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model_range(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert pixels, uint8 [N, H, W, C], to float32 [N, C, H, W] in [-1, 1]."""
    x = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    return x * (2 / 255) - 1


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """Quantise images in [-1, 1] to the nearest of 256 levels; values beyond are clipped.

    Args:
        x: [N, C, H, W].

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("samples contain NaN or infinity; no image can be made of them")
    levels = torch.round((x.clamp(-1, 1) + 1) * (255 / 2)).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(pixels: NDArray[np.uint8], columns: int | None = None, cell: int = 64, gap: int = 6) -> NDArray[np.uint8]:
    """A contact sheet: all images in one picture, enlarged by whole pixels, with white gaps between them.

    Args:
        pixels: uint8 [N, H, W, C], C = 1 or 3.
        columns: images per row; None makes the sheet close to square.
        cell: width in pixels to which an image is enlarged, at most.
        gap: white pixels between images and around them.

    Returns:
        uint8 [height, width] for C = 1, [height, width, 3] for C = 3.
    """
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    scale = max(1, cell // width)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    tall, wide = height * scale + gap, width * scale + gap
    picture = np.full((math.ceil(count / columns) * tall + gap, columns * wide + gap, channels), 255, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * tall + gap, (index % columns) * wide + gap
        picture[top : top + height * scale, left : left + width * scale] = image
    return picture[:, :, 0] if channels == 1 else picture
