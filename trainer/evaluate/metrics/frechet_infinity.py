"""The Frechet distance at infinitely many samples, and standard errors.

The distance of N samples is biased by about c / N, where c depends on the model (Chong and Forsyth 2020,
arXiv:1911.07023): at one N, two models may stand in the wrong order. A line in 1 / N through several sizes has the
unbiased distance as its intercept, to the next order. The reference's own moments are taken as exact.

Sizes are N, N / 2, N / 3, N / 4, each the mean over as many disjoint parts of one keyed order, so that every size uses
every sample. Points of one line share their samples, so the residuals say nothing of the intercept's error: it is
measured by leaving out each tenth of the samples in turn (grouped jackknife). A part's moments less those of a group
in it are all that this takes, so memory is O(d^2) whatever N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.frechet import FrechetReference, Moments
from diffusion.rng import Stream, counter_generator
from trainer.evaluate.metrics.sample_features import SampleFeatures

PARTS = 4
GROUPS = 10


@dataclass(frozen=True)
class Extrapolation:
    """Frechet distance of N samples, and against 1 / N.

    Attributes:
        distance: of all N samples.
        distance_se: its standard error, from the samples' side.
        infinite: intercept of the line at 1 / N = 0; None where the samples are too few.
        infinite_se: its standard error, likewise.
    """

    distance: float
    distance_se: float | None
    infinite: float | None
    infinite_se: float | None


def extrapolate(features: SampleFeatures, reference: FrechetReference, seed: int, parts: int = PARTS) -> Extrapolation:
    """The distance between samples' features and the reference, and what it tends to.

    With parts = 1, the distance and its standard error alone, at a tenth of the work.

    N of at least `minimum_samples(d, 1)` has a standard error, N of at least `minimum_samples(d)` an extrapolation.

    Raises:
        ValueError: no more samples than dimensions.
    """
    count, dimensions = features.count, len(reference.mean)
    parts = parts if count >= minimum_samples(dimensions, parts) else 1
    with_error = count >= minimum_samples(dimensions, 1)
    order = counter_generator(seed, Stream.SCORE_SUBSETS).permutation(count)
    place = np.empty_like(order)
    place[order] = np.arange(count)
    points = [_point(features, reference, torch.from_numpy(place), of, with_error) for of in range(1, parts + 1)]
    distance, *left_out = points[0][:, 1].tolist()
    distance_se = _jackknife_error(left_out) if with_error else None
    if parts == 1:
        return Extrapolation(distance, distance_se, None, None)
    infinite, *intercepts = (_intercept(line) for line in np.stack(points, axis=1))
    return Extrapolation(distance, distance_se, infinite, _jackknife_error(intercepts))


def minimum_samples(dimensions: int, parts: int = PARTS) -> int:
    """The fewest samples whose parts, with a group left out, have more rows than dimensions."""
    size = dimensions + 1
    while size - -(-size // GROUPS) <= dimensions:
        size += 1
    return parts * size


def _jackknife_error(left_out: Sequence[float]) -> float:
    return float(((GROUPS - 1) * np.var(left_out)) ** 0.5)


def _point(
    features: SampleFeatures, reference: FrechetReference, place: Tensor, parts: int, with_error: bool
) -> NDArray[np.float64]:
    """Means over parts of (1 / size, distance): of whole parts, and `with_error` of them without each of the groups."""
    size = len(place) // parts
    found = list[list[tuple[float, float]]]()
    for part in range(parts):
        groups = features.moments(torch.where(place // size == part, place % GROUPS, -1), GROUPS, len(reference.mean))
        whole = sum(groups, start=Moments.none(len(reference.mean)))
        sets = chain([whole], (whole - each for each in groups if with_error))
        found.append([(1 / each.count, reference.distance(each)) for each in sets])
    return np.mean(found, axis=0)


def _intercept(points: NDArray[np.float64]) -> float:
    return float(np.polynomial.Polynomial.fit(points[:, 0], points[:, 1], 1)(0.0))
