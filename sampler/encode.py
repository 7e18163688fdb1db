"""Images as files: one PNG grid, or the exact array as .npy."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion.images import grid

Pixels = NDArray[np.uint8]


def png(pixels: Pixels) -> bytes:
    """One grid of the images, uint8 [N, H, W, C] with C = 1 or 3, as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(grid(pixels)).save(file, format="png")
    return file.getvalue()


def npy(pixels: Pixels) -> bytes:
    """The array, uint8 [N, H, W, C], as a .npy file."""
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


ENCODERS: dict[str, Callable[[Pixels], bytes]] = {"png": png, "npy": npy}


def check_format(name: str, channels: int) -> None:
    """Check that a file format can hold images of a number of channels.

    Raises:
        ValueError: PNG for images that are neither grey (1) nor RGB (3).
    """
    if name == "png" and channels not in (1, 3):
        raise ValueError(f"format: png: this model's images have {channels} channels, png takes 1 or 3; use npy")
