"""Shapes and conversions that every formula needs: the one way to broadcast, the one way out of a tensor."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from torch import Tensor


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """Shape per-row values [B] for broadcasting against `like` [B, ...], in its dtype and on its device."""
    return values.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def to_floats(values: Tensor) -> list[float]:
    """The values of a one-dimensional tensor."""
    return [float(value) for value in values]
