"""The features of a set of samples, gone through block by block: there need never be all of them at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.frechet import Moments

LEAST_CHUNK = 1024


@dataclass(frozen=True)
class SampleFeatures:
    """Features of N samples, in the samples' order.

    Attributes:
        count: N.
        read: begins at the first block, each time it is called; float32 or float64 [n, d].
    """

    count: int
    read: Callable[[], Iterable[Tensor]]

    def whole(self) -> Tensor:
        """All of them, [N, d]."""
        return torch.cat(list(self.read()))

    def moments(self, group: Tensor, groups: int, dimensions: int) -> list[Moments]:
        """The moments of each group of samples, in O(groups d^2) memory whatever N.

        Args:
            group: to which each sample belongs, int64 [N]; none where it is negative.
            groups: how many there are.
            dimensions: d.
        """
        found, first = [Moments.none(dimensions)] * groups, 0
        for chunk in self._chunks(max(LEAST_CHUNK, dimensions)):
            here = group[first : first + len(chunk)]
            found = [moments + Moments.of(chunk[here == which]) for which, moments in enumerate(found)]
            first += len(chunk)
        return found

    def _chunks(self, least: int) -> Iterator[Tensor]:
        """Blocks joined to `least` rows and more: a product of few rows takes as long as its d^2 sums."""
        waiting, rows = list[Tensor](), 0
        for block in self.read():
            waiting.append(block)
            rows += len(block)
            if rows >= least:
                yield torch.cat(waiting)
                waiting, rows = list[Tensor](), 0
        if waiting:
            yield torch.cat(waiting)
