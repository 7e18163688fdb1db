"""The Frechet distance between Gaussians fitted to two sets of features, from float64 moments that add over shards.

With features of Inception-v3 it is the FID (Heusel et al. 2017).
"""
# torch.linalg has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of a set of features.

    a + b are the moments of the union of two disjoint sets; a - b are those of the set difference, where b is a subset.

    Attributes:
        count: N, the number of features.
        total: their sum, float64 [d].
        outer: sum of f f^T over features f, float64 [d, d].
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
        """The moments of the empty set of features of d = `dimensions`, the neutral element of +."""
        zero = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zero, torch.outer(zero, zero))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and unbiased covariance [d, d], float64.

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
    """A fitted Gaussian that others are compared with; the square root of its covariance is computed once.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d].
        root: symmetric square root of the covariance, float64 [d, d].
    """

    mean: Tensor
    covariance: Tensor
    root: Tensor

    @classmethod
    def of(cls, moments: Moments) -> "FrechetReference":
        """The Gaussian fitted to features with these moments.

        Raises:
            ValueError: as `Moments.mean_and_covariance`.
        """
        return cls.of_statistics(*moments.mean_and_covariance())

    @classmethod
    def of_statistics(cls, mean: Tensor, covariance: Tensor) -> "FrechetReference":
        """The Gaussian with this mean, float64 [d], and covariance, float64 [d, d]."""
        values, vectors = torch.linalg.eigh(covariance)
        return cls(mean, covariance, (vectors * values.clamp(min=0).sqrt()) @ vectors.T)

    def distance(self, moments: Moments) -> float:
        """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Heusel et al. 2017, equation 6).

        The trace of (S_a S_b)^{1/2} is the sum of the square roots of the eigenvalues of S_a^{1/2} S_b S_a^{1/2}, which
        is symmetric. In the units of the features squared.

        Raises:
            ValueError: as `Moments.mean_and_covariance`.
        """
        mean, covariance = moments.mean_and_covariance()
        product = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        trace_of_root = product.clamp(min=0).sqrt().sum()
        traces = self.covariance.trace() + covariance.trace() - 2 * trace_of_root
        return float((self.mean - mean).square().sum() + traces)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance between the Gaussians fitted to two sets of features.

    Raises:
        ValueError: as `Moments.mean_and_covariance`.
    """
    return FrechetReference.of(a).distance(b)
