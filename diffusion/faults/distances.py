"""Faults in the Frechet distance."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import torch

from diffusion import frechet
from diffusion.faults.fault import Fault
from diffusion.statements import distances


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


FAULTS = {
    "shards-in-float32": Fault(
        "shards' moments are added in float32", 15, (frechet.Moments,), "__add__", _added_in_float32
    ),
    "root-counted-once": Fault(
        "the root's trace counts once, not twice", 15, (frechet, distances), "frechet_distance", _root_once
    ),
}
