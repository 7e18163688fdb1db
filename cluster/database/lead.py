"""The lead: which dispatcher may change the queue and act on Ray.

Each lead has an epoch, one more than that of the lead before, and a random name. A dispatcher writes only in
transactions that find both in the database, so one that has lost the lead without noticing can change nothing any more.
"""

import time
from dataclasses import dataclass, field

from cluster.errors import DeposedError

# Linux's goes on while the machine is suspended, unlike time.monotonic
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock that is never set."""
    return time.clock_gettime(CLOCK)


@dataclass
class Lead:
    """A dispatcher's right to lead.

    Attributes:
        epoch: larger than that of every earlier lead.
        holder: distinguishes it from a lead of the same epoch that a failover of the database has forgotten.
        until: until when it is certain, as `now` tells.
    """

    epoch: int
    holder: str
    until: float = field(default=float("inf"))

    def check(self) -> None:
        """Raise DeposedError unless it is certain that no other dispatcher leads."""
        if now() >= self.until:
            raise DeposedError("the lead was not renewed in time; another dispatcher may have taken over")

    def compare(self, epoch: int, holder: str) -> None:
        """Raise DeposedError if the database has the epoch and the name of another lead."""
        if (epoch, holder) != (self.epoch, self.holder):
            raise DeposedError("another dispatcher has taken over")
