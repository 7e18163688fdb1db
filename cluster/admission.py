"""Which waiting job starts now, and why each of the others waits: a pure function.

One gang runs at a time. Jobs come in order of priority (highest first), then of submission. A job that does not
fit even an empty cluster is passed over, so that one job with a typo does not block the rest. So is a job that is held
back for some seconds because its last attempt ended as soon as it had begun.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cluster.spec import Bundle, format_bundle, format_gang

MAX_HOLD_S = 60.0
TOLERANCE = 1e-9  # of a quotient of two amounts, for rounding


@dataclass(frozen=True)
class Waiting:
    """A job in the queue.

    Attributes:
        id: the job's id; ids increase in order of submission.
        priority: higher goes first.
        gangs: the resources to ask Ray for; alternatives, in order of preference.
        held_until: the job does not start before this time, in seconds since the epoch.
    """

    id: int
    priority: int
    gangs: Sequence[Sequence[Bundle]]
    held_until: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Whether one waiting job starts now, and why.

    Attributes:
        job: its id.
        admitted: whether it starts now.
        reason: why, as shown to users.
    """

    job: int
    admitted: bool
    reason: str


def decide(waiting: Sequence[Waiting], running: Sequence[int], nodes: Sequence[Bundle], now: float) -> list[Decision]:
    """One decision for each waiting job, in the order in which they are to run; at most one is admitted.

    Args:
        waiting: the queue, in any order.
        running: ids of the jobs that have an open attempt.
        nodes: each node's total resources.
        now: seconds since the epoch.
    """
    decisions: list[Decision] = []
    ahead = f"job {running[0]} is running, and one runs at a time" if running else None
    for job in sorted(waiting, key=lambda job: (-job.priority, job.id)):
        passed_over = _passed_over(job, nodes, now)
        decisions.append(Decision(job.id, not passed_over and not ahead, passed_over or ahead or "first in line"))
        if not passed_over:
            behind = f"behind job {job.id} (priority {job.priority})"
            ahead = behind if ahead else f"job {job.id} is starting, and one runs at a time"
    return decisions


def could_hold(gang: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether the nodes, all empty, could hold the gang with each bundle whole on one node; False is certain.

    Exact for a gang of equal bundles. In a gang of unequal ones, each kind is placed as if it were alone: a gang that
    passes may still not fit, and then waits inside Ray.
    """
    kinds = [bundle for index, bundle in enumerate(gang) if bundle not in gang[:index]]
    return all(sum(_copies(node, kind) for node in nodes) >= list(gang).count(kind) for kind in kinds)


def _copies(node: Bundle, bundle: Bundle) -> float:
    """How many times a bundle fits on a node: a whole number, or infinity for a bundle that asks for nothing."""
    counts = [math.floor(node.get(name, 0.0) / amount + TOLERANCE) for name, amount in bundle.items() if amount > 0]
    return min(counts, default=math.inf)


def _passed_over(job: Waiting, nodes: Sequence[Bundle], now: float) -> str | None:
    if not any(could_hold(gang, nodes) for gang in job.gangs):
        asked = sorted({name for gang in job.gangs for bundle in gang for name in bundle})
        offers = "; ".join(format_bundle({name: node.get(name, 0.0) for name in asked}) for node in nodes)
        return f"asks for {' or '.join(format_gang(gang) for gang in job.gangs)}; the nodes have {offers or 'nothing'}"
    if now < job.held_until <= now + MAX_HOLD_S:  # or the clock was set back since
        clock = datetime.fromtimestamp(job.held_until).astimezone().strftime("%H:%M:%S")
        return f"held until {clock}: its last attempt ended as soon as it had begun"
    return None
