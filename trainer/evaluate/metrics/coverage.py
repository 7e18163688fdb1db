"""Class coverage: the classes that a classifier sees in samples, against those that it sees in the data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coverage:
    """Histograms over classes and what they differ by.

    Attributes:
        total_variation: half the sum of |p_samples - p_data|, in [0, 1].
        missing: classes of the data that no sample has.
        samples: count of samples by class.
        data: count of images by class.
    """

    total_variation: float
    missing: int
    samples: tuple[int, ...]
    data: tuple[int, ...]


def class_coverage(samples: NDArray[np.int64], data: NDArray[np.int64], classes: int) -> Coverage:
    """Of predicted classes in 0..classes - 1, by the same classifier for both, so that its errors stand on both sides.

    Raises:
        ValueError: an empty set.
    """
    if not len(samples) or not len(data):
        raise ValueError(f"{len(samples)} samples and {len(data)} images; at least 1 of each is needed for coverage")
    counts = np.bincount(samples, minlength=classes), np.bincount(data, minlength=classes)
    p_samples, p_data = (count / count.sum() for count in counts)
    missing = int(((counts[0] == 0) & (counts[1] > 0)).sum())
    variation = float(np.abs(p_samples - p_data).sum() / 2)
    return Coverage(variation, missing, *(tuple(int(count) for count in side) for side in counts))
