"""EMA of the fp32 master weights, sharded exactly like the optimizer.

Each rank averages the masters it holds, so the EMA needs no communication and no gathered copy, and costs a few tenths
of a millisecond per step and track. The update is elementwise, so the result is bitwise the EMA of the gathered
masters.
"""

import torch
from torch import Tensor

from diffusion.ema import decay, gamma_from_sigma_rel

EMA_KINDS: tuple[str, str] = ("ema_0", "ema_1")
"""Names of the two tracks in checkpoints."""


class ShardedEma:
    """theta_ema <- beta theta_ema + (1 - beta) theta, beta = (1 - 1 / step)^(gamma + 1), for each track's gamma.

    Attributes:
        tracks: track name (`EMA_KINDS`) -> fp32 tensors aligned with `Masters.flats`.
    """

    def __init__(self, masters: list[Tensor], sigma_rels: tuple[float, float]) -> None:
        """Start from the masters' values; the update of step 1 replaces them, since beta is 0 there."""
        self.tracks: dict[str, list[Tensor]] = {kind: [flat.clone() for flat in masters] for kind in EMA_KINDS}
        self._masters = masters
        self._gammas: dict[str, float] = dict(zip(EMA_KINDS, map(gamma_from_sigma_rel, sigma_rels), strict=True))

    def update(self, step: int, taken: Tensor) -> None:
        """Average in the masters' values after training step `step` >= 1, if it was taken.

        Args:
            step: the training step.
            taken: whether it was, bool []; may be on a device that the host does not wait for.
        """
        for kind, flats in self.tracks.items():
            weight = (taken * (1 - decay(step, self._gammas[kind]))).to(flats[0].device)
            torch._foreach_lerp_(flats, self._masters, [weight] * len(flats))  # pyright: ignore[reportPrivateImportUsage]
