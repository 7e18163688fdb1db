"""What counts for a limit, now and whenever a job that is ahead starts."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Group:
    """Jobs that count together, each with some numbers: those that run, and those ahead that are going to.

    Attributes:
        now: what those that run count.
    """

    def __init__(self, width: int) -> None:
        self.now: Numbers = np.zeros(width)
        self._running: dict[int, tuple[float, Numbers]] = {}  # job -> when it ends, and what it counts
        self._ahead: dict[int, tuple[float, Numbers]] = {}  # job -> when it starts, and what it counts
        self._table: tuple[Numbers, Numbers] | None = None

    @property
    def promised(self) -> int:
        """How many are going to start."""
        return len(self._ahead)

    def run(self, job: int, end: float, numbers: Numbers) -> None:
        """A job runs until a time, infinite for one that is not known."""
        if job not in self._running:
            self.now = self.now + numbers
        self._running[job] = end, numbers
        self._table = None

    def promise(self, job: int, start_at: float, numbers: Numbers) -> None:
        """A job is going to start at a time."""
        self._ahead[job] = start_at, numbers
        self._table = None

    def most(self, job: int, until: float, gone: Collection[int] = ()) -> Numbers:
        """The most that others count while a job runs from now until a time, once some that run have left."""
        left = [self._running[each] for each in gone if each in self._running]
        now = self.now - sum(numbers for _, numbers in left)
        if not self._ahead:
            return now
        starts, more = self._over_time()
        for end, numbers in left:  # that has ended by then in any case
            more = more + np.outer(end <= starts, numbers)
        if job in self._ahead:
            start_at, numbers = self._ahead[job]
            more = more - np.outer(start_at <= starts, numbers)
        return now + more[starts < until].max(0, initial=0.0)

    def _over_time(self) -> tuple[Numbers, Numbers]:
        """When those ahead start, and how much more, or less, than now all count then."""
        if self._table is None:
            starts = np.array([start_at for start_at, _ in self._ahead.values()])
            come = starts[:, None] >= starts
            more = come @ np.array([numbers for _, numbers in self._ahead.values()])
            if self._running:
                ended = starts[:, None] >= np.array([end for end, _ in self._running.values()])
                more = more - ended @ np.array([numbers for _, numbers in self._running.values()])
            self._table = starts, more
        return self._table
