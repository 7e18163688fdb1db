"""`frechet_classifier` of samples, with the scale that makes it a number one can read.

Every value is a distance to the training images: of the samples, of the held-out real images, of a Gaussian fitted to
the training images' pixels, and of uniform noise. All are 8-bit images; the last two are as many as the samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion.frechet import Moments, frechet_distance
from diffusion.keyed import Stream, keyed_generator
from trainer.evaluate.classifier import Extractor

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FrechetTable:
    """`frechet_classifier` of each set of samples and of its three yardsticks."""

    samples: list[float]
    heldout: float
    gaussian: float
    noise: float


def frechet_table(
    extractor: Extractor, train: Pixels, heldout: Pixels, samples: list[Pixels], seed: int
) -> FrechetTable:
    """Distances to the training images; each set needs more images than the extractor has features."""
    reference = Moments.of(extractor.features(train))

    def distance(pixels: Pixels) -> float:
        return frechet_distance(Moments.of(extractor.features(pixels)), reference)

    return FrechetTable(
        samples=[distance(each) for each in samples],
        heldout=distance(heldout),
        gaussian=distance(fitted_gaussian(train, len(samples[0]), seed)),
        noise=distance(uniform_noise(train, len(samples[0]), seed)),
    )


def fitted_gaussian(train: Pixels, count: int, seed: int) -> Pixels:
    """Draws from the Gaussian with the training pixels' mean and covariance, clipped and rounded to 8 bits."""
    flat = train.reshape(len(train), -1).astype(np.float64)
    generator = keyed_generator(seed, Stream.BASELINES, 0)
    centred = flat - flat.mean(0)
    weights = generator.standard_normal((count, len(flat))) / np.sqrt(len(flat) - 1)
    draws = flat.mean(0) + weights @ centred
    return np.clip(np.round(draws), 0, 255).astype(np.uint8).reshape(count, *train.shape[1:])


def uniform_noise(train: Pixels, count: int, seed: int) -> Pixels:
    """Independent uniform pixels."""
    generator = keyed_generator(seed, Stream.BASELINES, 1)
    return generator.integers(0, 256, size=(count, *train.shape[1:]), dtype=np.uint8)
