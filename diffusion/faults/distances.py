"""Faults in the Frechet distance's moments."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion import frechet
from diffusion.faults.fault import Fault
from diffusion.frechet import Moments


def _float32_sums(right: Callable[[Tensor], Moments]) -> Callable[[Tensor], Moments]:  # noqa: ARG001
    def wrong(features: Tensor) -> Moments:
        features = features.float()
        return Moments(len(features), features.sum(0).double(), (features.T @ features).double())

    return wrong


def _mean_of_covariances(right: Callable[..., Moments]) -> Callable[..., Moments]:
    def wrong(a: Moments, b: Moments) -> Moments:
        both = right(a, b)
        within = sum((part.count - 1) * part.mean_and_covariance()[1] for part in (a, b))
        return Moments(both.count, both.total, within + torch.outer(both.total, both.total) / both.count)

    return wrong


FAULTS = {
    "frechet-float32-sums": Fault("moments are summed in float32", 15, (frechet.Moments,), "of", _float32_sums),
    "frechet-mean-of-covariances": Fault(
        "shards' covariances are averaged, each about its own mean",
        15,
        (frechet.Moments,),
        "__add__",
        _mean_of_covariances,
    ),
}
