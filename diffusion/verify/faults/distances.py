"""Faults in the Frechet distance."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import torch

from diffusion import frechet
from diffusion.verify.faults.fault import Fault
from diffusion.verify.statements import distances


def _added_in_float32(right: Callable[..., frechet.Moments]) -> Callable[..., frechet.Moments]:
    def wrong(a: frechet.Moments, b: frechet.Moments) -> frechet.Moments:
        exact = right(a, b)
        return frechet.Moments(exact.count, exact.total.float().double(), exact.outer.float().double())

    return wrong


def _root_once(right: Callable[..., float]) -> Callable[..., float]:
    def wrong(a: Any, b: Any) -> float:  # noqa: ANN401
        (mean_a, covariance_a), (mean_b, covariance_b) = a.mean_and_covariance(), b.mean_and_covariance()
        traces = float((mean_a - mean_b).square().sum() + torch.trace(covariance_a + covariance_b))
        return (right(a, b) + traces) / 2

    return wrong


def _mean_of_covariances(right: Callable[..., frechet.Moments]) -> Callable[..., frechet.Moments]:
    def wrong(a: frechet.Moments, b: frechet.Moments) -> frechet.Moments:
        both = right(a, b)
        within = sum((part.count - 1) * part.mean_and_covariance()[1] for part in (a, b))
        return frechet.Moments(both.count, both.total, within + torch.outer(both.total, both.total) / both.count)

    return wrong


FAULTS = {
    "shards-about-their-own-means": Fault(
        "shards' covariances are averaged, each about its own mean",
        15,
        (frechet.Moments,),
        "__add__",
        _mean_of_covariances,
    ),
    "shards-in-float32": Fault(
        "shards' moments are added in float32", 15, (frechet.Moments,), "__add__", _added_in_float32
    ),
    "root-counted-once": Fault(
        "the root's trace counts once, not twice", 15, (frechet, distances), "frechet_distance", _root_once
    ),
}
