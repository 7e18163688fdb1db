"""Frechet distance between Gaussians fitted to feature sets, from float64 moments that add over shards."""
# torch.linalg has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of features; `a + b` are the moments of the union.

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

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

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


def frechet_distance(a: Moments, b: Moments) -> float:
    """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Heusel et al. 2017, equation 6).

    The trace of the root is the sum of the roots of the eigenvalues of S_a^{1/2} S_b S_a^{1/2}, which is symmetric.
    """
    mean_a, covariance_a = a.mean_and_covariance()
    mean_b, covariance_b = b.mean_and_covariance()
    values, vectors = torch.linalg.eigh(covariance_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace_of_root = product.clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    return float(distance)
