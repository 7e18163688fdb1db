"""Frechet distance between Gaussians fitted to feature sets, from float64 moments that add over shards."""
# torch.linalg has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of features.

    `a + b` are the moments of the union, and `a - b` those of what is left of a without b, which is a part of it.

    Attributes:
        count: N.
        total: float64 [d].
        outer: float64 [d, d].
    """

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features [N, d]."""
        features = features.to(torch.float64)
        return cls(len(features), features.sum(0), features.T @ features)

    @classmethod
    def none(cls, dimensions: int) -> "Moments":
        """The moments of no features, to add to."""
        zero = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zero, torch.outer(zero, zero))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and unbiased covariance [d, d].

        Raises:
            ValueError: no more features than dimensions, where the covariance is singular.
        """
        dimensions = len(self.total)
        if self.count <= dimensions:
            raise ValueError(
                f"{self.count} samples for {dimensions} feature dimensions; at least {dimensions + 1} are needed"
            )
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


@dataclass(frozen=True)
class FrechetReference:
    """A Gaussian that others are compared with, whose covariance's root is taken once.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d].
        root: the symmetric root of the covariance.
    """

    mean: Tensor
    covariance: Tensor
    root: Tensor

    @classmethod
    def of(cls, moments: Moments) -> "FrechetReference":
        """The Gaussian of these moments; raises as `Moments.mean_and_covariance`."""
        mean, covariance = moments.mean_and_covariance()
        values, vectors = torch.linalg.eigh(covariance)
        return cls(mean, covariance, (vectors * values.clamp(min=0).sqrt()) @ vectors.T)

    def distance(self, moments: Moments) -> float:
        """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Heusel et al. 2017, equation 6).

        The trace of the root is the sum of the roots of the eigenvalues of S_a^{1/2} S_b S_a^{1/2}, which is symmetric.
        """
        mean, covariance = moments.mean_and_covariance()
        product = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        trace_of_root = product.clamp(min=0).sqrt().sum()
        traces = self.covariance.trace() + covariance.trace() - 2 * trace_of_root
        return float((self.mean - mean).square().sum() + traces)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance between the Gaussians of two sets of features."""
    return FrechetReference.of(a).distance(b)
