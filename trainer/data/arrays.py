"""Sources that are a single array, read in this process: scikit-learn's digits, or a .npy file of 8-bit images."""

import tokenize
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.errors import InputError, one_line

UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, OverflowError, RuntimeError, SyntaxError, tokenize.TokenError,
)  # fmt: skip
"""What NumPy raises for a file that is no array; it reads a header as Python."""


@dataclass(frozen=True)
class Images:
    """8-bit images and their labels.

    Attributes:
        pixels: pixel values 0..255, uint8 [N, H, W, C].
        labels: class of each image, int64 [N]; -1 for an image without a label.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_array(data: DataConfig) -> Images:
    """The images of `data.source`, converted to `data.size` and `data.channels`.

    Raises:
        InputError: no such file, or a file that is not 8-bit images.
    """
    images = _digits() if data.source == "digits" else _npy(data.source)
    return Images(_converted(images.pixels, data), images.labels)


def _converted(pixels: NDArray[np.uint8], data: DataConfig) -> NDArray[np.uint8]:
    from PIL import Image

    from trainer.data.decode import Rejected, fit

    height, width, channels = pixels.shape[1:]
    size = (data.size, data.size) if data.size else (width, height)
    if size == (width, height) and data.channels in ("auto", channels):
        return pixels
    images = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in pixels)
    try:
        return np.stack([fit(image, size, data.channels) for image in images])
    except Rejected as error:
        raise InputError(f"data.size = {data.size}: {error}") from None


def _digits() -> Images:
    """1797 handwritten digits, levels 0..16 stored as round(v 255 / 16)."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    pixels = np.round(np.asarray(levels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Images(pixels, np.asarray(labels).astype(np.int64))


def _npy(source: str) -> Images:
    """The unlabelled images of a .npy file: a uint8 array [N, H, W] or [N, H, W, C]."""
    try:
        pixels = None if zipfile.is_zipfile(source) else npy.open_memmap(source, mode="r")
    except (*UNREADABLE, MemoryError) as error:
        raise InputError(f"data.source = {source!r}: not a readable .npy file: {one_line(error)}") from error
    if pixels is None:
        raise InputError(f"data.source = {source!r}: an archive of arrays; allowed: one array, as np.save writes it")
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[-1] not in (1, 3)
        or len(pixels) < 2
        or not pixels.size
    ):
        raise InputError(
            f"data.source = {source!r}: {pixels.dtype} {pixels.shape}; "
            "allowed: uint8 [N, H, W] or [N, H, W, 1 or 3], N >= 2"
        )
    return Images(pixels, np.full(len(pixels), -1, dtype=np.int64))
