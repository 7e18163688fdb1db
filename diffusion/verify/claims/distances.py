"""Claim 15: the Frechet distance's bias and shards."""

from collections.abc import Iterator

import torch

from diffusion.frechet import Moments, frechet_distance
from diffusion.verify.claims.check import Check


def frechet_moments(quick: bool) -> Iterator[Check]:
    """Claim 15: the Frechet distance's bias falls as 1 / N; shards add up to one pass."""
    generator = torch.Generator().manual_seed(5)
    reference = Moments(10**9, torch.zeros(4, dtype=torch.float64), (10**9 - 1) * torch.eye(4, dtype=torch.float64))

    def bias(count: int) -> float:
        draws = 400 if quick else 2000
        samples = (torch.randn(count, 4, dtype=torch.float64, generator=generator) for _ in range(draws))
        return sum(frechet_distance(Moments.of(sample), reference) for sample in samples) / draws

    yield Check("bias x N at N = 50 over that at N = 200", bias(50) * 50 / (bias(200) * 200), 1.0, 0.1)
    a, b = (torch.randn(400, 8, dtype=torch.float64, generator=generator) * (1 + i) + i for i in range(2))
    one, first, second = Moments.of(b), Moments.of(a[:151]), Moments.of(a[151:])
    whole = frechet_distance(Moments.of(a), one)
    yield Check("distance from shards over that of one pass", frechet_distance(second + first, one) / whole, 1.0, 1e-12)
