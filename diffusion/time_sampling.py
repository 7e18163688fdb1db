"""How the time of each training row is drawn.

A draw is made for the GLOBAL batch from uniforms that do not depend on the number of workers; a rank keeps its rows.
What is drawn is how far t is on its way, u in [0, 1); `Process.time_from_fraction` makes a time of it.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion.config import ImportanceTime, TimeSamplingConfig

Floats = NDArray[np.float64]


@dataclass
class LossMoments:
    """The second moments of the loss in equal parts of [0, 1), as averages that forget: what `importance` draws by.

    Attributes:
        config: number of parts, how fast they forget, and the share of draws that stays uniform.
        sums: discounted sums of squared losses, float64 [bins].
        counts: discounted numbers of losses, float64 [bins].
    """

    config: ImportanceTime
    sums: Floats = field(init=False)
    counts: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.counts = np.zeros(self.config.bins), np.zeros(self.config.bins)

    def update(self, u: Floats, losses: Floats) -> None:
        """Take in the weighted losses of one global batch, before importance weights; u and losses [B]."""
        bins = self._bins(u)
        number = np.bincount(bins, minlength=self.config.bins)
        forget = self.config.decay**number
        self.sums = forget * self.sums + np.bincount(bins, losses**2, minlength=self.config.bins)
        self.counts = forget * self.counts + number

    def probabilities(self) -> Floats:
        """Of each part: in proportion to the root of its second moment; uniform until all parts have been seen."""
        bins, uniform = self.config.bins, self.config.uniform
        if not self.counts.all() or not self.sums.any():
            return np.full(bins, 1 / bins)
        roots = np.sqrt(self.sums / self.counts)
        return uniform / bins + (1 - uniform) * roots / roots.sum()

    def draw(self, u: Floats) -> tuple[Floats, Floats]:
        """Move uniform u [B] to where losses are large.

        Returns:
            The moved u, and each row's importance weight: uniform over drawn density, 1 on average.
        """
        probabilities = self.probabilities()
        edges = np.concatenate([[0.0], np.cumsum(probabilities)])
        bins = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, self.config.bins - 1)
        fraction = np.clip((u - edges[bins]) / probabilities[bins], 0, 1)
        return clamp_below_one((bins + fraction) / self.config.bins), 1 / (self.config.bins * probabilities[bins])

    def _bins(self, u: Floats) -> NDArray[np.int64]:
        return np.minimum((u * self.config.bins).astype(np.int64), self.config.bins - 1)


def draw_time_fractions(config: TimeSamplingConfig, generator: np.random.Generator, batch_size: int) -> Floats:
    """How far each t of one global batch is on its way, uniform on [0, 1).

    `uniform`: independent. `stratified`, and `importance` before `LossMoments.draw` moves it: u_i = (perm(i) + v_i) / B
    with a random permutation and v_i uniform on [0, 1), so every t keeps its probability while the batch covers [0, 1)
    evenly. A batch mean's error falls as B^-3/2; with one offset v for all rows (Kingma et al. 2021, appendix I.1) it
    would as B^-1.

    Returns:
        float64 [batch_size].
    """
    if config.kind == "uniform":
        return generator.random(batch_size)
    u = (generator.permutation(batch_size) + generator.random(batch_size)) / batch_size
    return clamp_below_one(u)


def clamp_below_one(u: Floats) -> Floats:
    """What rounded up to 1 back within [0, 1): in a chain 1 would be a step beyond the last."""
    return np.minimum(u, np.nextafter(1, 0))
