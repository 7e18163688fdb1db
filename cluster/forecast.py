"""When waiting jobs are expected to start, if everything takes as long as declared and nothing else comes.

Each job in its order takes the first time at which it fits until its end, beside those that run and those before it.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from cluster.placement import Amounts, Cluster, Demand, is_too_much, whole
from cluster.resources import Shape

MAX_STEPS = 32  # of what those that run give back


class Forecast:
    """What will be free, step by step: between two times as much as at the first of them."""

    def __init__(self, cluster: Cluster, free: Amounts, now: float, ends: Sequence[tuple[float, Amounts]]) -> None:
        """What is free now, and what is given back when, in order of time; of what never ends at infinity.

        Ends that are close to each other count as the last of them where there are more than MAX_STEPS.
        """
        self._cluster, self._free_now = cluster, free
        self._times, self._free = [now], [free]
        finite = [each for each in ends if np.isfinite(each[0])]
        per_step = -(-len(finite) // MAX_STEPS) or 1
        for first in range(0, len(finite), per_step):
            step = finite[first : first + per_step]
            at, after = max(now, step[-1][0]), sum((used for _, used in step), self._free[-1])
            if at == self._times[-1]:
                self._free[-1] = after
            else:
                self._times.append(at)
                self._free.append(after)
        endless = [used for end, used in ends if not np.isfinite(end)]
        self._at_last: Amounts = sum(endless, self._free[-1])  # when those have ended too, nobody knows when
        self._unknown = False  # whether a job waits for that, which those behind it must not delay
        self._sums = [whole(np.maximum(each, 0)) for each in self._free]
        self._from: dict[tuple[Shape, int], tuple[float, int]] = {}  # a run time that fits at no step before one

    def start(self, shape: Shape, demand: Demand, runs_s: float, not_before: float | None = None) -> float | None:
        """When a gang starts, which takes its place there; None if that cannot be known.

        Args:
            shape: the job's.
            demand: the gang, one of the shape's.
            runs_s: it runs no longer than this.
            not_before: the earliest time; None for now.
        """
        key = shape, demand.gang
        before_s, first = self._from.get(key, (np.inf, 0))
        first = first if runs_s >= before_s else 0
        for step in range(first if not_before is None else max(first, self._split(not_before)), len(self._times)):
            if not_before is None:
                self._from[key] = runs_s, step
            if is_too_much(demand, self._sums[step]) or self._cluster.place(demand, self._free[step]) is None:
                continue
            end = self._times[step] + runs_s
            until = bisect_left(self._times, end, step + 1)
            room: Amounts = np.minimum.reduce([*self._free[step:until], *([self._at_last] if self._unknown else [])])
            places = self._cluster.place(demand, room, self._cluster.busy(room, self._free_now))
            if places is not None:
                self._take(places.taken, step, until, end)
                return self._times[step]
        if not_before is None:
            self._from[key] = runs_s, len(self._times)
        if (places := self._cluster.place(demand, self._at_last)) is not None:
            self._at_last, self._unknown = self._at_last - places.taken, True
        return None

    def _take(self, taken: Amounts, step: int, until: int, end: float) -> None:
        if np.isfinite(end):
            until = self._split(end)
        for each in range(step, until):
            self._free[each] = self._free[each] - taken
            self._sums[each] = self._sums[each] - whole(taken)
        if not np.isfinite(end):
            self._at_last = self._at_last - taken

    def _split(self, at: float) -> int:
        """The step that begins at a time after now."""
        step = bisect_left(self._times, at)
        if step == len(self._times) or self._times[step] > at:
            self._times.insert(step, at)
            self._free.insert(step, self._free[step - 1])
            self._sums.insert(step, self._sums[step - 1])
        return step
