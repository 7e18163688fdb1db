"""The 256 levels of 8-bit data in [-1, 1], their dequantisation, and which data a likelihood refuses.

Level p in 0..255 is x_0 = 2 p / 255 - 1. The two variational bounds are on the probability P(p) of the levels. A
density needs continuous data, y = 2 (p + u) / 256 - 1 with u uniform on [0, 1), whose bins are 2 / 256 wide (Theis et
al. 2016):

    -log P(p) <= E_u[-log p(y)] + D log(256 / 2), and so bits/dim = E_u[-log p(y)] / (D ln 2) + 7.
"""

import math

import torch
from torch import Tensor

NUM_LEVELS = 256
DEQUANTISATION_OFFSET = math.log2(NUM_LEVELS) - 1  # bits/dim: the data have a range of 2, not 256
LEVEL_TOLERANCE = 1e-3  # in units of their spacing; in float32 a level is off by at most 2e-5
HOW_TO_SCALE = "scale 8-bit pixels p as 2 p / 255 - 1 (diffusion.images.to_model_range)"


def dequantise(x_0: Tensor, u: Tensor) -> Tensor:
    """y = 2 (p + u) / 256 - 1 of the levels p of x_0 (Theis et al. 2016).

    Args:
        x_0: data on the 256-level grid of [-1, 1].
        u: uniform on [0, 1), the shape of x_0.

    Returns:
        float64 in [-1, 1), the shape of x_0.

    Raises:
        ValueError: data that are not on the levels.
    """
    require_levels(x_0)
    return 2 * (level_index(x_0) + u.to(torch.float64)) / NUM_LEVELS - 1


def level_index(x_0: Tensor) -> Tensor:
    """The nearest level p in 0..255 of each value in [-1, 1], int64, the shape of x_0."""
    return torch.round(_position(x_0)).long()


def level_values(like: Tensor) -> Tensor:
    """All levels 2 p / 255 - 1, ascending, float64 [256], on the device of `like`."""
    return torch.arange(NUM_LEVELS, dtype=torch.float64, device=like.device) * (2 / (NUM_LEVELS - 1)) - 1


def require_levels(x_0: Tensor) -> None:
    """Refuse data for which the probability of levels has no meaning.

    Raises:
        ValueError: a value that is not finite, beyond [-1, 1] or between two levels.
    """
    _require_range(x_0, 0.0)
    off = ~_on_levels(x_0)
    if off.any():
        raise ValueError(
            f"data hold {float(x_0[off][0]):.6g}, between two of the 256 levels of [-1, 1]; allowed: the levels: "
            f"{HOW_TO_SCALE}; continuous data have a density instead (diffusion.likelihood.ode)"
        )


def require_dequantised(x: Tensor) -> None:
    """Refuse data for which a density of dequantised images in [-1, 1] has no meaning.

    Raises:
        ValueError: a value that is not finite or beyond [-1, 1], no value below 0 anywhere, or a row entirely on the
            levels.
    """
    _require_range(x, 2 / NUM_LEVELS)
    if x.numel() and float(x.min()) >= 0:
        raise ValueError(
            f"data range over [{float(x.min()):.4g}, {float(x.max()):.4g}]; allowed: [-1, 1]: {HOW_TO_SCALE}"
        )
    if _on_levels(x).flatten(1).all(1).any():
        raise ValueError(
            "data on the 256 levels have no density, and a flexible model's would be infinite; allowed: dequantised "
            "data: diffusion.likelihood.quantization.dequantise(x_0, u), u uniform on [0, 1)"
        )


def _require_range(x: Tensor, slack: float) -> None:
    if not x.isfinite().all():
        raise ValueError("data hold NaN or infinity; allowed: numbers in [-1, 1]")
    if x.numel() and float(x.abs().max()) > 1 + slack + 1e-5:
        raise ValueError(
            f"data range over [{float(x.min()):.4g}, {float(x.max()):.4g}]; allowed: [-1, 1]: {HOW_TO_SCALE}"
        )


def _position(x: Tensor) -> Tensor:
    return (x.to(torch.float64) + 1) * ((NUM_LEVELS - 1) / 2)


def _on_levels(x: Tensor) -> Tensor:
    position = _position(x)
    return (position - torch.round(position)).abs() < LEVEL_TOLERANCE
