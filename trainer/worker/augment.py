"""Changes of training images that keep what they show: mirroring, and a crop of the padded image.

How each row of a step is changed is drawn in batch_plan.py; this applies it, exactly, to pixels.
"""

import numpy as np
from numpy.typing import NDArray


def augmented(
    pixels: NDArray[np.uint8], flipped: NDArray[np.bool_], corner: NDArray[np.int64], padding: int
) -> NDArray[np.uint8]:
    """Images mirrored, padded and cropped, each its own way.

    Args:
        pixels: uint8 [R, H, W, C].
        flipped: whether left and right change places, bool [R].
        corner: first row and column of the crop in the padded image, int64 [R, 2] in 0..2 padding; `padding` for both
            is the image itself.
        padding: pixels on each side, less than H and W: the image reflected, without the edge itself.

    Returns:
        uint8 [R, H, W, C].
    """
    pixels = np.where(flipped[:, None, None, None], pixels[:, :, ::-1], pixels)
    if padding == 0:
        return pixels
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    rows = corner[:, :1] + np.arange(height)
    columns = corner[:, 1:] + np.arange(width)
    return padded[np.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]
