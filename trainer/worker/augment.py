"""Augmentation of training images: horizontal flips, and random crops of the padded image.

The random choices are drawn in batch_plan.py; this module applies them to pixels, exactly.
"""

import numpy as np
from numpy.typing import NDArray


def augmented(
    pixels: NDArray[np.uint8], flipped: NDArray[np.bool_], crop_offset: NDArray[np.int64], padding: int
) -> NDArray[np.uint8]:
    """Flip, pad and crop each image in its own way.

    Args:
        pixels: images, uint8 [R, H, W, C].
        flipped: whether the image is mirrored left to right, bool [R].
        crop_offset: first row and column of the crop in the padded image, in 0..2 padding, int64 [R, 2]; (padding,
            padding) gives the image itself.
        padding: reflected pixels added on each side, without repeating the edge; less than H and W.

    Returns:
        Augmented images, uint8 [R, H, W, C].
    """
    pixels = np.where(flipped[:, None, None, None], pixels[:, :, ::-1], pixels)
    if padding == 0:
        return pixels
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    rows = crop_offset[:, :1] + np.arange(height)
    columns = crop_offset[:, 1:] + np.arange(width)
    return padded[np.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]
