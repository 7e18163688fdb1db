"""Levels, dequantisation, and which data each likelihood refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffusion.images import to_model_range
from diffusion.likelihood.ode import dequantised_bits_per_dim
from diffusion.likelihood.quantization import (
    DEQUANTISATION_OFFSET,
    dequantise,
    level_index,
    level_values,
    require_dequantised,
    require_levels,
)

PIXELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_all_levels_are_recognised_in_float32():
    x = to_model_range(PIXELS)
    require_levels(x)
    assert level_index(x).flatten().tolist() == list(range(256))
    torch.testing.assert_close(level_values(x).float(), x.flatten(), rtol=0, atol=2e-7)


@given(st.integers(0, 255), st.floats(0, 1, exclude_max=True))
def test_dequantised_data_stay_in_the_bin_of_their_level(level: int, u: float):
    x = level_values(torch.zeros(1))[level].reshape(1, 1)
    y = float(dequantise(x, torch.tensor([[u]], dtype=torch.float64)))
    assert -1 <= y <= 1
    assert level <= (y + 1) * 128 <= level + 1  # the largest u round to the end of the bin


def test_bits_per_dim_bound_the_probability_of_a_level():
    """A density that is constant over a level's bin gives P(p) exactly: p(y) = 64 there, of width 1 / 128, is 1 bit."""
    assert float(dequantised_bits_per_dim(torch.tensor(-math.log(64.0)), 1)) == pytest.approx(1, abs=1e-6)
    assert DEQUANTISATION_OFFSET == 7


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 255.0), r"range over \[0, 255\]; allowed: \[-1, 1\]: scale 8-bit pixels p as 2 p / 255 - 1"),
        ((-1.5, 0.2), r"range over \[-1.5, 0.2\]; allowed: \[-1, 1\]"),
        ((0.0, 0.5), "hold 0, between two of the 256 levels.*to_model_range.*diffusion.likelihood.ode"),
        ((-1.0, math.nan), "NaN or infinity"),
        ((-1.0, math.inf), "NaN or infinity"),
    ],
)
def test_the_discrete_bounds_refuse(values, message):
    for refuse in (require_levels, lambda x: dequantise(x, torch.zeros_like(x))):
        with pytest.raises(ValueError, match=message):
            refuse(images(*values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.3, 255.7), r"allowed: \[-1, 1\]: scale 8-bit pixels"),
        ((-1.02, 0.3), r"range over \[-1.02, 0.3\]"),
        ((0.003, 0.998), r"range over \[0.003, 0.998\]; allowed: \[-1, 1\]"),
        ((-1.0, 1.0, 3 / 255), r"no density.*diffusion.likelihood.quantization.dequantise\(x_0, u\)"),
        ((-0.3, math.nan), "NaN or infinity"),
    ],
)
def test_the_density_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        require_dequantised(images(*values))


def test_one_row_on_the_levels_is_enough_to_refuse_and_dequantised_data_pass():
    x = to_model_range(PIXELS).repeat(2, 1, 1, 1)
    y = dequantise(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)))
    require_dequantised(y)
    require_dequantised(y.float())
    y[1] = x[1]
    with pytest.raises(ValueError, match="no density"):
        require_dequantised(y)


def test_no_images_are_nothing_to_refuse():
    empty = torch.zeros(0, 1, 2, 2)
    require_levels(empty)
    require_dequantised(empty)
