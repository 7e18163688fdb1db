"""The one broadcast helper, the one way to another device, and the one way from a tensor to Python numbers."""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from torch import Tensor


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """Reshape per-row values [B] to [B, 1, ..., 1], in the dtype and on the device of `like` [B, ...]."""
    return beside(values, like).reshape(-1, *[1] * (like.ndim - 1))


def beside(values: Tensor, like: Tensor) -> Tensor:
    """`values` in the dtype and on the device of `like`; on the way to a GPU, the host does not wait for it.

    Values that are not in pinned memory are read before this returns, so they may change or go afterwards.
    """
    return values.to(like, non_blocking=like.is_cuda)


def to_floats(values: Tensor) -> list[float]:
    """The elements of a one-dimensional tensor as Python floats."""
    return [float(value) for value in values]
