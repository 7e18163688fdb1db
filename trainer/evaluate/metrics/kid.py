"""KID: the kernel distance between two sets of features, unbiased at any number of samples, with a standard error.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) with k(x, y) = (x . y / d + 1)^3 (Binkowski et al. 2018,
arXiv:1801.01401). Each block of both sets gives an unbiased estimate, in which no feature is paired with itself; the
blocks share no feature, so they are independent and their spread is the mean's standard error (Zaremba et al. 2013,
arXiv:1307.1954). An estimate may be negative where the sets are alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.rng import Stream, counter_generator

BLOCKS = 10
MAX_BLOCK = 1000


@dataclass(frozen=True)
class KernelDistance:
    """`kid_<extractor>`: the mean over a number of blocks, and its standard error."""

    value: float
    standard_error: float
    blocks: int


def kernel_distance(x: Tensor, y: Tensor, seed: int) -> KernelDistance:
    """KID of features [N, d] and [M, d], over 10 disjoint keyed blocks, or more where they would exceed 1000 rows.

    Raises:
        ValueError: a set with fewer than two features a block.
    """
    fewest, most = sorted((len(x), len(y)))
    if fewest < 2 * BLOCKS:
        raise ValueError(f"{fewest} samples for KID; at least {2 * BLOCKS} are needed, two in each of {BLOCKS} blocks")
    blocks = min(max(BLOCKS, -(-most // MAX_BLOCK)), fewest // 2)
    estimates = torch.tensor(
        [mmd2(a, b) for a, b in zip(_blocks(x, blocks, seed, 0), _blocks(y, blocks, seed, 1), strict=True)],
        dtype=torch.float64,
    )
    return KernelDistance(float(estimates.mean()), float(estimates.std() / blocks**0.5), blocks)


def _blocks(features: Tensor, blocks: int, seed: int, side: int) -> list[Tensor]:
    order = torch.from_numpy(counter_generator(seed, Stream.SCORE_SUBSETS, 1, side).permutation(len(features)))
    return [features[rows] for rows in order.tensor_split(blocks)]


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of features [n, d] and [m, d], n and m at least 2, in float64."""
    x, y = x.double(), y.double()
    within_x = _off_diagonal_mean(_kernel(x, x))
    within_y = _off_diagonal_mean(_kernel(y, y))
    between = _kernel(x, y).mean()
    return float(within_x + within_y - 2 * between)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    rows = len(kernel)
    return (kernel.sum() - kernel.trace()) / (rows * (rows - 1))
