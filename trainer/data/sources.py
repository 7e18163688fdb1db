"""Where images come from: scikit-learn's digits, or a .npy file of 8-bit images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.settings import InputError


@dataclass(frozen=True)
class Images:
    """8-bit images and their labels.

    Attributes:
        pixels: uint8 [N, H, W, C].
        labels: int64 [N], -1 where there are none.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return int(self.labels.max()) + 1

    def take(self, rows: NDArray[np.int64]) -> "Images":
        """Some of the images, in the order of `rows`."""
        return Images(self.pixels[rows], self.labels[rows])


def load_source(source: str) -> Images:
    """The images that `data.source` names.

    Raises:
        InputError: no such source or file, or a file that is not 8-bit images.
    """
    return _digits() if source == "digits" else _npy(source)


def check_source(source: str) -> None:
    """Refuse a source that is not there, without reading it."""
    if source != "digits" and not (source.endswith(".npy") and Path(source).is_file()):
        raise InputError(
            f"data.source = {source!r}: no such data; allowed: digits, or the path of a .npy file of uint8 images"
        )


def _digits() -> Images:
    """1797 handwritten digits, levels 0..16 stored as round(v 255 / 16)."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    pixels = np.round(np.asarray(levels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Images(pixels, np.asarray(labels).astype(np.int64))


def _npy(source: str) -> Images:
    """A uint8 array [N, H, W] or [N, H, W, C], unlabelled."""
    check_source(source)
    try:
        pixels = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"data.source = {source!r}: not a readable .npy file: {error}") from error
    if not isinstance(pixels, np.ndarray):
        pixels.close()
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
