"""Counter-based randomness: every draw is a function of (seed, stream, a, b), whoever draws it and in whatever order.

A counter-based generator (Philox; Salmon et al. 2011) is set to the counter (a, b) under the key (seed, stream), so a
row's noise is the same on any worker, in any batch and after any restart. Streams keep draws of different purpose
independent.
"""
# torch.from_numpy has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """The purpose of a draw. The value is part of the generator's key, so existing values never change."""

    EPOCH_ORDER = 1
    TIMESTEPS = 2
    TRAINING_NOISE = 3
    SAMPLING_NOISE = 4
    LIKELIHOOD_TIMESTEPS = 5
    LIKELIHOOD_NOISE = 6
    BASELINES = 7
    DROPOUT = 8
    LABEL_DROPOUT = 9
    PILOT_NOISE = 10
    AUGMENTATION = 11
    DEQUANTISATION = 12
    LIKELIHOOD_DEQUANTISATION = 13
    LIKELIHOOD_PROBE = 14
    SCORE_SUBSETS = 15
    DENOISING_NOISE = 16


def counter_generator(seed: int, stream: Stream, a: int = 0, b: int = 0) -> np.random.Generator:
    """A generator set to the start of one counter.

    Args:
        seed: the run's seed, 0..2^64 - 1.
        stream: the purpose of the draw.
        a: first part of the counter, such as a step or an image's index, 0..2^64 - 1.
        b: second part, such as a row or a draw's index, 0..2^64 - 1.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, a, b, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def counter_normal(seed: int, stream: Stream, keys: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, one independent row for each counter.

    Args:
        seed: 0..2^64 - 1.
        stream: the purpose of the draw.
        keys: the counters (a, b) of the rows.
        shape: of one row.

    Returns:
        float32 [len(keys), *shape].
    """
    noise = np.empty((len(keys), *shape), dtype=np.float32)
    for row, generator in zip(noise, _at_keys(seed, stream, keys), strict=True):
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(noise)


def counter_uniform(seed: int, stream: Stream, keys: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
    """Uniform draws from [0, 1), one independent row for each counter.

    Args:
        seed: 0..2^64 - 1.
        stream: the purpose of the draw.
        keys: the counters (a, b) of the rows.
        shape: of one row.

    Returns:
        float32 [len(keys), *shape].
    """
    drawn = np.empty((len(keys), *shape), dtype=np.float32)
    for row, generator in zip(drawn, _at_keys(seed, stream, keys), strict=True):
        generator.random(dtype=np.float32, out=row)
    return torch.from_numpy(drawn)


def _at_keys(seed: int, stream: Stream, keys: Sequence[tuple[int, int]]) -> Iterator[np.random.Generator]:
    """One generator, moved to each counter in turn, which takes a tenth of the time of making a new one."""
    generator = counter_generator(seed, stream)
    state = generator.bit_generator.state
    for a, b in keys:
        state["state"]["counter"] = np.array([0, a, b, 0], dtype=np.uint64)
        generator.bit_generator.state = state
        yield generator
