"""Sets of images that scores are read beside: real ones held out, a fitted Gaussian, and noise.

A distance of samples to the training images means little by itself; beside those of real images, which no model can
be expected to beat, and of what knows only means and covariances, it is a place on a scale.
"""

import numpy as np

from diffusion.rng import Stream, counter_generator
from trainer.config.evaluation import EvaluationConfig
from trainer.data.dataset import Dataset
from trainer.evaluate.extractors.base import Images, Pixels

BASELINES = ("heldout", "gaussian", "noise")
FITTED = 10_000  # training images that the Gaussian is fitted to, spread over the set


def reference_sets(config: EvaluationConfig) -> dict[str, str]:
    """The sets of images that samples are compared with, by what they are: `train` and the baselines."""
    drawn = f"{config.seed}-{config.samples}"
    return {"train": "train", "heldout": "heldout"} | {name: f"{name}-{drawn}" for name in BASELINES[1:]}


def image_set(data: Dataset, name: str) -> Images:
    """`train`, `heldout`, or of 8-bit images drawn with a seed, `gaussian-SEED-N` and `noise-SEED-N`."""
    if name in ("train", "heldout"):
        return data.images(name)
    kind, seed, count = name.split("-")
    draw = {"gaussian": fitted_gaussian, "noise": uniform_noise}[kind]
    rows = spread(data.info.train, FITTED)
    return draw(data.images("train")[rows], int(count), int(seed))


def spread(total: int, most: int) -> np.ndarray:
    """At most `most` of `total` rows, evenly spaced, whose order may be that of classes; int64."""
    count = min(total, most)
    return np.arange(count) * total // count


def fitted_gaussian(train: Pixels, count: int, seed: int) -> Pixels:
    """Draws from the Gaussian with the training pixels' mean and covariance, clipped and rounded to 8 bits."""
    flat = train.reshape(len(train), -1).astype(np.float64)
    generator = counter_generator(seed, Stream.BASELINES, 0)
    centred = flat - flat.mean(0)
    weights = generator.standard_normal((count, len(flat))) / np.sqrt(len(flat) - 1)
    draws = flat.mean(0) + weights @ centred
    return np.clip(np.round(draws), 0, 255).astype(np.uint8).reshape(count, *train.shape[1:])


def uniform_noise(train: Pixels, count: int, seed: int) -> Pixels:
    """Independent uniform pixels."""
    generator = counter_generator(seed, Stream.BASELINES, 1)
    return generator.integers(0, 256, size=(count, *train.shape[1:]), dtype=np.uint8)
