"""The lead: which dispatcher may change the queue and act on Ray.

Each lead has an epoch, one more than that of the lead before. A dispatcher writes only in transactions that find its
own epoch in the database, so one that has lost the lead without noticing can change nothing any more.
"""

import time
from dataclasses import dataclass, field

from cluster.errors import DeposedError


@dataclass
class Lead:
    """A dispatcher's right to lead.

    Attributes:
        epoch: distinguishes it from every earlier and later one.
        until: until when it is certain, on `time.monotonic`'s clock.
    """

    epoch: int
    until: float = field(default=float("inf"))

    def check(self) -> None:
        """Raise DeposedError unless it is certain that no other dispatcher leads."""
        if time.monotonic() >= self.until:
            raise DeposedError("the lead was not renewed in time; another dispatcher may have taken over")

    def compare(self, epoch: int) -> None:
        """Raise DeposedError if the database has another epoch."""
        if epoch != self.epoch:
            raise DeposedError("another dispatcher has taken over")
