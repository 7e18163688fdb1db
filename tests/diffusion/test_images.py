"""8-bit images and the model's range, and the grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.images import grid, to_model_range, to_pixels

ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_all_256_levels_survive_the_round_trip():
    assert np.array_equal(to_pixels(to_model_range(ALL_LEVELS)), ALL_LEVELS)


def test_levels_are_evenly_spaced_from_minus_one_to_one():
    x = to_model_range(ALL_LEVELS).flatten().double()
    # 2 p / 255 lies in [0, 2], where float32 numbers are 2^-23 apart; product and difference round once each
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256, dtype=torch.float64), rtol=0, atol=2 * 2.0**-23)
    assert float(x[0]) == -1
    assert float(x[-1]) == 1


@given(st.integers(0, 255), st.floats(-0.499, 0.499))
@settings(deadline=None)
def test_values_go_to_the_nearest_level(level, offset):
    x = torch.tensor(2 * (level + offset) / 255 - 1).reshape(1, 1, 1, 1)
    assert to_pixels(x).item() == level


def test_channels_move_and_come_back():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    x = to_model_range(pixels)
    assert x.shape == (2, 3, 3, 5)
    assert float(x[1, 2, 0, 4]) == pytest.approx(2 * int(pixels[1, 0, 4, 2]) / 255 - 1, abs=2 * 2.0**-23)
    assert np.array_equal(to_pixels(x), pixels)


def test_values_beyond_the_range_are_clipped():
    assert to_pixels(torch.tensor([-7.0, -1.001, 1.001, 1e30]).reshape(1, 1, 2, 2)).flatten().tolist() == [
        0,
        0,
        255,
        255,
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x = torch.zeros(2, 1, 3, 3)
    x[1, 0, 2, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        to_pixels(x)


@pytest.mark.parametrize(
    ("count", "columns", "across"), [(5, None, 3), (64, None, 8), (3, 3, 3), (7, 2, 2), (2, 4, 4), (1, None, 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_enlarged_image_between_white_gaps(count, columns, across, channels):
    images = np.random.default_rng(1).integers(0, 255, (count, 4, 6, channels), dtype=np.uint8)
    picture = grid(images, columns=columns, cell=14, gap=3)
    scale = 2
    down = math.ceil(count / across)
    assert picture.shape == (down * (4 * scale + 3) + 3, across * (6 * scale + 3) + 3) + ((3,) if channels == 3 else ())
    covered = np.zeros(picture.shape[:2], dtype=bool)
    for index in range(count):
        top, left = index // across * (4 * scale + 3) + 3, index % across * (6 * scale + 3) + 3
        shown = picture[top : top + 4 * scale, left : left + 6 * scale].reshape(4 * scale, 6 * scale, channels)
        assert np.array_equal(shown, np.kron(images[index], np.ones((scale, scale, 1), dtype=np.uint8)))
        covered[top : top + 4 * scale, left : left + 6 * scale] = True
    assert (picture[~covered] == 255).all()


def test_images_larger_than_the_cell_keep_their_pixels():
    image = np.random.default_rng(2).integers(0, 255, (1, 100, 100, 1), dtype=np.uint8)
    assert np.array_equal(grid(image, cell=64, gap=1)[1:-1, 1:-1], image[0, :, :, 0])
