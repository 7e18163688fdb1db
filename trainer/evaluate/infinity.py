"""The Frechet distance at infinitely many samples, and standard errors.

The distance of N samples is biased by about c / N, where c depends on the model (Chong and Forsyth 2020,
arXiv:1911.07023): at one N, two models may stand in the wrong order. A line in 1 / N through several sizes has the
unbiased distance as its intercept, to the next order. The reference's own moments are taken as exact.

Sizes are N, N / 2, N / 3, N / 4, each the mean over as many disjoint parts of one keyed order, so that every size uses
every sample. Points of one line share their samples, so the residuals say nothing of the intercept's error: it is
measured by leaving out each tenth of the samples in turn (grouped jackknife).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from diffusion.frechet import FrechetReference, Moments
from diffusion.keyed import Stream, keyed_generator

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


def extrapolate(features: Tensor, reference: FrechetReference, seed: int, parts: int = PARTS) -> Extrapolation:
    """The distance between samples' features [N, d] and the reference, and what it tends to.

    With parts = 1, the distance and its standard error alone, at a tenth of the work.

    N of at least `minimum_samples(d, 1)` has a standard error, N of at least `minimum_samples(d)` an extrapolation.

    Raises:
        ValueError: no more samples than dimensions.
    """
    count, dimensions = features.shape
    distance = reference.distance(Moments.of(features))
    if count < minimum_samples(dimensions, 1):
        return Extrapolation(distance, None, None, None)
    order = keyed_generator(seed, Stream.SCORE_SUBSETS).permutation(count)
    shuffled = features[torch.from_numpy(order)].double()
    group = torch.arange(count) * GROUPS // count
    parts = parts if count >= minimum_samples(dimensions, parts) else 1
    left_out = [_curve(shuffled[group != g], reference, parts) for g in range(GROUPS)]
    distance_se = _jackknife_error([distances[0] for _, distances in left_out])
    if parts == 1:
        return Extrapolation(distance, distance_se, None, None)
    infinite_se = _jackknife_error([_intercept(*curve) for curve in left_out])
    return Extrapolation(distance, distance_se, _intercept(*_curve(shuffled, reference, parts)), infinite_se)


def minimum_samples(dimensions: int, parts: int = PARTS) -> int:
    """The fewest samples whose parts, with a group left out, have more rows than dimensions."""
    count = parts * (dimensions + 1)
    while (count - -(-count // GROUPS)) // parts <= dimensions:
        count += 1
    return count


def _jackknife_error(left_out: Sequence[float]) -> float:
    spread = sum((value - fmean(left_out)) ** 2 for value in left_out)
    return ((GROUPS - 1) / GROUPS * spread) ** 0.5


def _curve(features: Tensor, reference: FrechetReference, parts: int) -> tuple[list[int], list[float]]:
    sizes, distances = list[int](), list[float]()
    for count in range(1, parts + 1):
        size = len(features) // count
        chunks = features.split(size)[:count]
        sizes.append(size)
        distances.append(fmean(reference.distance(Moments.of(chunk)) for chunk in chunks))
    return sizes, distances


def _intercept(sizes: Sequence[int], distances: Sequence[float]) -> float:
    return float(np.polynomial.Polynomial.fit([1 / size for size in sizes], distances, 1)(0.0))
