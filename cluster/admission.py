"""Which waiting job starts now, and why each of the others waits: a pure function.

One gang runs at a time. Jobs come in order of priority (highest first), then of submission. A job that the cluster
cannot hold even when empty is passed over, so that one job with a typo does not hold up the rest; so is a job that is
held back for a moment, because its last attempt ended as soon as it had begun.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cluster.spec import Bundle, amounts, total

ROUNDING = 1e-9


@dataclass(frozen=True)
class Waiting:
    """A job in the queue.

    Attributes:
        id: the job; ids count up in order of submission.
        priority: the higher goes first.
        gangs: the resources it may ask for, alternatives in order of preference.
        held_until: seconds since the epoch, before which it does not start.
    """

    id: int
    priority: int
    gangs: Sequence[Sequence[Bundle]]
    held_until: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What is decided about one waiting job.

    Attributes:
        job: its id.
        admitted: whether it starts now.
        reason: why, for people.
    """

    job: int
    admitted: bool
    reason: str


def decide(waiting: Sequence[Waiting], running: Sequence[int], nodes: Sequence[Bundle], now: float) -> list[Decision]:
    """One decision for each waiting job, in the order in which they will run; at most one is admitted.

    Args:
        waiting: the queue, in any order.
        running: ids of jobs that have an open attempt.
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
    """False where the nodes, all empty, certainly cannot hold the gang, every bundle whole on one node.

    Exact for a gang of equal bundles. Of unequal ones each kind is placed as if it were alone: a gang that passes may
    still not fit, and then waits inside Ray.
    """
    kinds = [bundle for index, bundle in enumerate(gang) if bundle not in gang[:index]]
    return all(sum(_copies(node, kind) for node in nodes) >= list(gang).count(kind) for kind in kinds)


def _copies(node: Bundle, bundle: Bundle) -> float:
    """How many times a bundle fits on a node: a whole number, or infinity for a bundle that asks for nothing."""
    counts = [math.floor(node.get(name, 0.0) / amount + ROUNDING) for name, amount in bundle.items() if amount > 0]
    return min(counts, default=math.inf)


def _passed_over(job: Waiting, nodes: Sequence[Bundle], now: float) -> str | None:
    if not any(could_hold(gang, nodes) for gang in job.gangs):
        asked = sorted({name for gang in job.gangs for bundle in gang for name in bundle})
        offers = "; ".join(amounts({name: node.get(name, 0.0) for name in asked}) for node in nodes)
        return f"asks for {' or '.join(total(gang) for gang in job.gangs)}; the nodes have {offers or 'nothing'}"
    if now < job.held_until:
        clock = datetime.fromtimestamp(job.held_until).astimezone().strftime("%H:%M:%S")
        return f"held until {clock}: its last attempt ended as soon as it had begun"
    return None
