"""EMA of the fp32 master weights, sharded exactly like the optimizer.

Each rank averages the masters it holds, so the EMA costs no communication, no gathered copy and a few tenths of a
millisecond a step and track; it is bitwise the EMA of the gathered masters, since the update is elementwise.
"""

import torch
from torch import Tensor

from diffusion.ema import decay, gamma_from_sigma_rel

EMA_KINDS: tuple[str, str] = ("ema_0", "ema_1")
"""What checkpoints call the two tracks."""


class ShardedEma:
    """theta_ema <- beta theta_ema + (1 - beta) theta, beta = (1 - 1 / step)^(gamma + 1), for each track's gamma.

    Attributes:
        tracks: fp32 tensors aligned with `Masters.flats`, by `EMA_KINDS`.
    """

    def __init__(self, masters: list[Tensor], sigma_rels: tuple[float, float]) -> None:
        """Start from the masters' values; step 1 replaces them, as beta is 0 there."""
        self.tracks: dict[str, list[Tensor]] = {kind: [flat.clone() for flat in masters] for kind in EMA_KINDS}
        self._masters = masters
        self._gammas: dict[str, float] = dict(zip(EMA_KINDS, map(gamma_from_sigma_rel, sigma_rels), strict=True))

    def update(self, step: int) -> None:
        """Take in the masters after optimizer step `step` >= 1."""
        for kind, flats in self.tracks.items():
            torch._foreach_lerp_(flats, self._masters, 1 - decay(step, self._gammas[kind]))  # pyright: ignore[reportPrivateImportUsage]
