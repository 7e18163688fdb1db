"""8-bit images and the model's range [-1, 1], and the grid a person looks at.

Pixels p in 0..255 stand for x = 2 p / 255 - 1; sets of images are [N, C, H, W] for the model, [N, H, W, C] as uint8
arrays to look at or store.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model_range(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [-1, 1]."""
    x = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    return x * (2 / 255) - 1


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """float32 [N, C, H, W] to the nearest of the 256 levels, uint8 [N, H, W, C]; values beyond [-1, 1] are clipped.

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("samples contain NaN or infinity; no image can be made of them")
    levels = torch.round((x.clamp(-1, 1) + 1) * (255 / 2)).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(pixels: NDArray[np.uint8], columns: int | None = None, cell: int = 64, gap: int = 6) -> NDArray[np.uint8]:
    """One picture of many: enlarged by whole pixels to about `cell` wide, white gaps between, near-square by default.

    Args:
        pixels: uint8 [N, H, W, C], C = 1 or 3.
        columns: images per row.
        cell: width in pixels that an image is enlarged towards.
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
