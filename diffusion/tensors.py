"""The one broadcast helper, and the one way from a tensor to Python numbers."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from torch import Tensor


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """Reshape per-row values [B] to [B, 1, ..., 1], in the dtype and on the device of `like` [B, ...]."""
    return values.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def to_floats(values: Tensor) -> list[float]:
    """The elements of a one-dimensional tensor as Python floats."""
    return [float(value) for value in values]
