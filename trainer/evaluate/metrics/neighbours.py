"""What nearest neighbours say of samples: precision, recall, and whether training images were learnt by heart.

Precision is the fraction of samples inside the real set, recall that of real images inside the samples' set, where a
set is the union of balls around its members that reach to the member's k-th neighbour (Kynkaanniemi et al. 2019,
arXiv:1904.06991). Both depend on the sizes of the sets: compare at equal ones. Distances are Euclidean, in blocks:
O(block * N) memory.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 512
NEIGHBOURS = 3


@dataclass(frozen=True)
class PrecisionRecall:
    """Each in [0, 1]."""

    precision: float
    recall: float


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to training images, beside how near held-out images are.

    Attributes:
        median_ratio: median distance of the samples over that of the held-out images; well below 1 is memorisation.
        closer_fraction: of samples nearer than the held-out images' 1st percentile; 0.01 where they are as far.
        distances: of each sample to its nearest training image, float64 [N].
        nearest: index of that training image, int64 [N].
    """

    median_ratio: float
    closer_fraction: float
    distances: NDArray[np.float64]
    nearest: NDArray[np.int64]


def precision_recall(real: Tensor, samples: Tensor, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Of features [N, d] and [M, d].

    Raises:
        ValueError: a set that has no k-th neighbour.
    """
    for name, features in (("real images", real), ("samples", samples)):
        if len(features) <= k:
            raise ValueError(f"{len(features)} {name} have no {k}th neighbour; at least {k + 1} are needed")
    real, samples = _centred(real, samples)
    return PrecisionRecall(_inside(samples, real, k), _inside(real, samples, k))


def memorisation(train: Tensor, heldout: Tensor, samples: Tensor) -> Memorisation:
    """Nearest training neighbours of samples and of held-out images, from their features [., d].

    Raises:
        ValueError: an empty set, or held-out images that are training images.
    """
    for name, features in (("training images", train), ("held-out images", heldout), ("samples", samples)):
        if not len(features):
            raise ValueError(f"no {name}; at least 1 is needed to compare nearest neighbours")
    train, heldout, samples = _centred(train, heldout, samples)
    distances, nearest = _nearest(samples, train)
    usual, _ = _nearest(heldout, train)
    if not np.median(usual) > 0:
        raise ValueError("most held-out images are training images too; a split without copies is needed")
    closer = distances < np.percentile(usual, 1)
    return Memorisation(float(np.median(distances) / np.median(usual)), float(closer.mean()), distances, nearest)


def _centred(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Moved to the first set's mean: distances stay, and squares lose no digits to a common offset."""
    mean = first.double().mean(0)
    return [features.double() - mean for features in (first, *others)]


def _squared(queries: Tensor, points: Tensor) -> Tensor:
    norms = queries.square().sum(1)[:, None] + points.square().sum(1)
    return (norms - 2 * queries @ points.T).clamp(min=0)


def _inside(queries: Tensor, points: Tensor, k: int) -> float:
    """Fraction of the queries that lie in a ball of the points."""
    radii = torch.cat(
        [_squared(block, points).kthvalue(k + 1, dim=1).values for block in points.split(BLOCK)]  # the 1st is itself
    )
    inside = sum(int((_squared(block, points) <= radii).any(1).sum()) for block in queries.split(BLOCK))
    return inside / len(queries)


def _nearest(queries: Tensor, points: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    found = [_squared(block, points).min(1) for block in queries.split(BLOCK)]
    indices = torch.cat([block.indices for block in found])
    return (queries - points[indices]).norm(dim=1).numpy(), indices.numpy()
