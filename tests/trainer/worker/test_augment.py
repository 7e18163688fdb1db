"""Mirroring and cropping, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from trainer.worker.augment import augmented

STAY = np.zeros(1, dtype=bool)
ROW = np.array([[[[1], [2], [3]], [[4], [5], [6]], [[7], [8], [9]]]], dtype=np.uint8)  # one image of 3 x 3


def cropped(row: int, column: int, padding: int) -> list[list[int]]:
    return augmented(ROW, STAY, np.array([[row, column]]), padding)[0, :, :, 0].tolist()


def test_a_mirrored_image_is_read_from_right_to_left():
    mirrored = augmented(ROW, ~STAY, np.zeros((1, 2), dtype=np.int64), 0)
    assert mirrored[0, :, :, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (1, 1, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (0, 1, [[4, 5, 6], [1, 2, 3], [4, 5, 6]]),
        (1, 2, [[2, 3, 2], [5, 6, 5], [8, 9, 8]]),
        (2, 0, [[5, 4, 5], [8, 7, 8], [5, 4, 5]]),
    ],
)
def test_a_crop_starts_at_its_corner_of_the_reflected_image(row, column, expected):
    assert cropped(row, column, 1) == expected


@given(st.integers(1, 5), st.integers(5, 7), st.integers(5, 9), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_every_image_is_changed_by_itself(count, height, width, channels, seed):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    padding = int(draw.integers(0, 5))
    flipped, crop_offset = draw.random(count) < 0.5, draw.integers(0, 2 * padding + 1, (count, 2))
    together = augmented(pixels, flipped, crop_offset, padding)
    for index in range(count):
        image = pixels[index, :, ::-1] if flipped[index] else pixels[index]
        rows, columns = (
            [_reflected(first - padding + i, side) for i in range(side)]
            for first, side in zip(crop_offset[index], (height, width), strict=True)
        )
        assert np.array_equal(together[index], image[np.ix_(rows, columns)])


def _reflected(place: int, side: int) -> int:
    """Where a place outside an image is seen in the mirror at its edge."""
    return abs(place) if place < side else 2 * (side - 1) - place
