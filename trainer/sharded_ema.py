"""EMA of the fp32 master weights, sharded exactly like the optimizer.

Each rank averages the masters it holds, so the EMA costs no communication, no gathered copy and a few tenths of a
millisecond a step; it is bitwise the EMA of the gathered masters, since the update is elementwise.
"""

import torch
from torch import Tensor

from diffusion.ema import decay, gamma_from_sigma_rel


class ShardedEma:
    """theta_ema <- beta theta_ema + (1 - beta) theta, beta = (1 - 1 / step)^(gamma + 1).

    Attributes:
        flats: fp32 tensors aligned with `Masters.flats`.
    """

    def __init__(self, masters: list[Tensor], sigma_rel: float) -> None:
        """Start from the masters' values; step 1 replaces them, as beta is 0 there."""
        self.flats = [flat.clone() for flat in masters]
        self._masters = masters
        self._gamma = gamma_from_sigma_rel(sigma_rel)

    def update(self, step: int) -> None:
        """Take in the masters after optimizer step `step` >= 1."""
        torch._foreach_lerp_(self.flats, self._masters, 1 - decay(step, self._gamma))  # pyright: ignore[reportPrivateImportUsage]
