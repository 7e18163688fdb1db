"""What a feature extractor is, and the plainest one: the pixels themselves.

Distances between sets of images are distances between their features, so every score carries its extractor's name, and
a digest that says which function of the pixels it was. Only Inception-v3's Frechet distance is called `fid`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffusion.images import to_model_range
from trainer.evaluate.extractors.dimensions import dimensions, pixel_grid

Pixels = NDArray[np.uint8]

FEATURE_BLOCK = 1024
EMPTY = "no images: an empty split or set of samples; at least 1 image is needed"


class Images(Protocol):
    """A sequence of images that slices give as uint8 [n, H, W, C]: an array, or a data set's mapped split."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Pixels: ...


class FeatureExtractor(Protocol):
    """Features of images, float64 [N, dimensions]; a row is the same, up to rounding, whatever the rest of the set."""

    @property
    def name(self) -> str:
        """As in `frechet_<name>`."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of all that the features depend on beside the pixels."""
        ...

    @property
    def dimensions(self) -> int:
        """Of the features."""
        ...

    def features(self, pixels: Pixels) -> Tensor:
        """Of 8-bit images [N, H, W, C], float64 [N, dimensions]."""
        ...


@dataclass(frozen=True)
class PixelExtractor:
    """The pixels of an image in [-1, 1], averaged over the smallest squares that leave at most MAX_PIXEL_FEATURES.

    A covariance of d features needs more than d images and d^2 memory: 32 x 32 colour images have 3072 pixels and, by
    2 x 2 means, 768 features. Where the sides are not multiples of the square's, neighbouring squares overlap.

    Attributes:
        image_shape: (C, H, W).
    """

    image_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """`pixels`."""
        return "pixels"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns that are left."""
        return pixel_grid(self.image_shape)

    @property
    def dimensions(self) -> int:
        """C times the rows and columns that are left."""
        return dimensions("pixels", self.image_shape)

    @property
    def sha256(self) -> str:
        """Digest of the image shape and of what is left of it."""
        return hashlib.sha256(f"pixels {self.image_shape} {self.grid}".encode()).hexdigest()

    def features(self, pixels: Pixels) -> Tensor:
        """float64 [N, dimensions]."""
        channels, height, width = self.image_shape
        check_pixels(pixels, (channels,))
        if pixels.shape[1:3] != (height, width):
            raise ValueError(f"pixels: shape {pixels.shape}; allowed: [N, {height}, {width}, {channels}]")
        parts = [
            F.adaptive_avg_pool2d(to_model_range(pixels[first : first + FEATURE_BLOCK]).double(), self.grid).flatten(1)
            for first in range(0, len(pixels), FEATURE_BLOCK)
        ]
        return torch.cat(parts)


def check_pixels(pixels: NDArray[np.generic], channels: tuple[int, ...] = (1, 3)) -> None:
    """Features are of 8-bit images, at least one of them.

    Raises:
        ValueError: another type, another shape, or no image.
    """
    allowed = f"uint8 [N, H, W, C] with C = {' or '.join(str(count) for count in channels)}"
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels: {pixels.dtype} values; allowed: {allowed} (diffusion.images.to_pixels makes them)")
    if pixels.ndim != 4 or pixels.shape[-1] not in channels:
        raise ValueError(f"pixels: shape {list(pixels.shape)}; allowed: {allowed}")
    if not len(pixels):
        raise ValueError(EMPTY)


def as_rgb(pixels: Pixels) -> Tensor:
    """uint8 [N, H, W, C] to uint8 [N, 3, H, W]; grey is repeated."""
    check_pixels(pixels)
    return torch.tensor(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()


def in_batches(network: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """network(x) in float64, in batches of exactly `size`: the last is filled up with copies of its last row.

    Libraries choose their algorithm by shape, so one shape keeps a row's rounding from depending on the set's size.
    """
    parts = []
    with torch.inference_mode():
        for batch in x.split(size):
            filled = torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])
            parts.append(network(filled)[: len(batch)].double())
    return torch.cat(parts)


def feature_blocks(extractor: FeatureExtractor, images: Images) -> Iterator[Tensor]:
    """The features of images block by block, float64 [n, d], n at most FEATURE_BLOCK; mapped images are read so too.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError(EMPTY)
    for first in range(0, len(images), FEATURE_BLOCK):
        yield extractor.features(images[first : first + FEATURE_BLOCK])


def frechet_name(extractor: FeatureExtractor) -> str:
    """The metric's name: `fid` for Inception-v3 alone."""
    return "fid" if extractor.name == "inception" else f"frechet_{extractor.name}"


def feature_key(extractor: FeatureExtractor) -> str:
    """An extractor in the names of files."""
    return f"{extractor.name}_{extractor.sha256[:16]}"
