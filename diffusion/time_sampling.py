"""How the time t of each training row is drawn.

Draws are made for the GLOBAL batch from uniforms that do not depend on the number of workers; each rank keeps its own
rows. What is drawn is u in [0, 1), the fraction of the way from t_min to t_max; `Process.time_from_fraction` turns it
into a time.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion.config import ImportanceTime, TimeSamplingConfig

Floats = NDArray[np.float64]


@dataclass
class LossMoments:
    """Running second moments of the loss in equal bins of [0, 1), from which `importance` samples u.

    The sampling density is proportional to sqrt(E[loss^2]) (Nichol & Dhariwal 2021, equation 18), mixed with a uniform
    one so that every bin goes on being measured. The moments are exponential averages: sums / counts of each bin.

    Attributes:
        config: number of bins, decay per observed loss, and the fraction of draws that stays uniform.
        sums: discounted sums of squared losses, float64 [bins].
        counts: discounted numbers of losses, float64 [bins].
    """

    config: ImportanceTime
    sums: Floats = field(init=False)
    counts: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.counts = np.zeros(self.config.bins), np.zeros(self.config.bins)

    def update(self, u: Floats, losses: Floats) -> None:
        """Update the moments with one global batch.

        Args:
            u: fractions at which the losses were measured, in [0, 1), float64 [B].
            losses: weighted losses before importance weights, float64 [B].
        """
        bins = self._bins(u)
        number = np.bincount(bins, minlength=self.config.bins)
        forget = self.config.decay**number
        self.sums = forget * self.sums + np.bincount(bins, losses**2, minlength=self.config.bins)
        self.counts = forget * self.counts + number

    def probabilities(self) -> Floats:
        """The probability of each bin, float64 [bins], of sum 1; uniform until every bin has been observed.

        It is uniform / bins + (1 - uniform) r / sum(r), with r the square root of each bin's second moment.
        """
        bins, uniform = self.config.bins, self.config.uniform
        if not self.counts.all() or not self.sums.any():
            return np.full(bins, 1 / bins)
        roots = np.sqrt(self.sums / self.counts)
        return uniform / bins + (1 - uniform) * roots / roots.sum()

    def draw(self, u: Floats) -> tuple[Floats, Floats]:
        """Transform uniform draws to draws from the bins' density, by its inverse distribution function.

        Args:
            u: uniform on [0, 1), float64 [B].

        Returns:
            The transformed u, in [0, 1), and the importance weight of each row, 1 / density, of mean 1; float64 [B]
                both.
        """
        probabilities = self.probabilities()
        edges = np.concatenate([[0.0], np.cumsum(probabilities)])
        bins = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, self.config.bins - 1)
        fraction = np.clip((u - edges[bins]) / probabilities[bins], 0, 1)
        return clamp_below_one((bins + fraction) / self.config.bins), 1 / (self.config.bins * probabilities[bins])

    def _bins(self, u: Floats) -> NDArray[np.int64]:
        return np.minimum((u * self.config.bins).astype(np.int64), self.config.bins - 1)


def draw_time_fractions(config: TimeSamplingConfig, generator: np.random.Generator, batch_size: int) -> Floats:
    """The fractions u of one global batch, each uniform on [0, 1).

    `uniform`: independent. `stratified`, and `importance` before `LossMoments.draw` transforms it: u_i = (perm(i) +
    v_i) / B with a random permutation and v_i uniform on [0, 1), one row in each of B equal strata. Every u stays
    uniform while the batch covers [0, 1) evenly. The error of a batch mean falls as B^-3/2, against B^-1/2 for
    `uniform` and B^-1 with one offset v for all rows (Kingma et al. 2021, appendix I.1).

    Args:
        config: how to draw.
        generator: at the step's counter, the same on every rank.
        batch_size: B, of the global batch.

    Returns:
        float64 [batch_size].
    """
    if config.kind == "uniform":
        return generator.random(batch_size)
    u = (generator.permutation(batch_size) + generator.random(batch_size)) / batch_size
    return clamp_below_one(u)


def clamp_below_one(u: Floats) -> Floats:
    """Clamp values that were rounded up to 1 back below 1; in a chain, 1 would be a step beyond the last."""
    return np.minimum(u, np.nextafter(1, 0))
