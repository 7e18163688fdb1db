"""Mutants of the Frechet distance."""
# mutants take whatever the originals take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import torch

from diffusion import frechet
from diffusion.verify.claims import distances
from diffusion.verify.mutants.mutation import Mutation


def _added_in_float32(original: Callable[..., frechet.Moments]) -> Callable[..., frechet.Moments]:
    def mutant(a: frechet.Moments, b: frechet.Moments) -> frechet.Moments:
        exact = original(a, b)
        return frechet.Moments(exact.count, exact.total.float().double(), exact.outer.float().double())

    return mutant


def _root_once(original: Callable[..., float]) -> Callable[..., float]:
    def mutant(a: Any, b: Any) -> float:  # noqa: ANN401
        (mean_a, covariance_a), (mean_b, covariance_b) = a.mean_and_covariance(), b.mean_and_covariance()
        traces = float((mean_a - mean_b).square().sum() + torch.trace(covariance_a + covariance_b))
        return (original(a, b) + traces) / 2

    return mutant


def _mean_of_covariances(original: Callable[..., frechet.Moments]) -> Callable[..., frechet.Moments]:
    def mutant(a: frechet.Moments, b: frechet.Moments) -> frechet.Moments:
        both = original(a, b)
        within = sum((part.count - 1) * part.mean_and_covariance()[1] for part in (a, b))
        return frechet.Moments(both.count, both.total, within + torch.outer(both.total, both.total) / both.count)

    return mutant


MUTANTS = {
    "shards-about-their-own-means": Mutation(
        "shards' covariances are averaged, each about its own mean",
        15,
        (frechet.Moments,),
        "__add__",
        _mean_of_covariances,
    ),
    "shards-in-float32": Mutation(
        "shards' moments are added in float32", 15, (frechet.Moments,), "__add__", _added_in_float32
    ),
    "root-counted-once": Mutation(
        "the root's trace counts once, not twice", 15, (frechet, distances), "frechet_distance", _root_once
    ),
}
