"""Which waiting job starts now, and why each of the others waits: a pure function.

One gang runs at a time. Jobs come in order of priority (highest first), then of submission. A job that the cluster
could not hold even when empty is passed over, so that one job with a typo does not hold up the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec import Bundle, amounts, total

ROUNDING = 1e-9


@dataclass(frozen=True)
class Waiting:
    """A job in the queue.

    Attributes:
        id: the job.
        priority: the higher goes first.
        submitted_at: seconds; the earlier goes first at the same priority.
        gangs: the resources it may ask for, alternatives in order of preference.
    """

    id: int
    priority: int
    submitted_at: float
    gangs: Sequence[Sequence[Bundle]]


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


def decide(waiting: Sequence[Waiting], running: Sequence[int], nodes: Sequence[Bundle]) -> list[Decision]:
    """One decision for each waiting job, in the order in which they will run; at most one is admitted.

    Args:
        waiting: the queue, in any order.
        running: ids of jobs that have an open attempt.
        nodes: each node's total resources.
    """
    decisions: list[Decision] = []
    ahead = None if not running else f"job {running[0]} is running, and one runs at a time"
    for job in sorted(waiting, key=lambda job: (-job.priority, job.submitted_at, job.id)):
        if not any(fits(gang, nodes) for gang in job.gangs):
            decisions.append(Decision(job.id, False, _too_large(job, nodes)))
        elif ahead:
            decisions.append(Decision(job.id, False, ahead))
            ahead = f"behind job {job.id} (priority {job.priority})"
        else:
            decisions.append(Decision(job.id, True, "first in line"))
            ahead = f"job {job.id} is starting, and one runs at a time"
    return decisions


def fits(gang: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether every bundle finds a place, each on one node: largest first, on the first node with room.

    Exact for gangs of equal bundles; a gang of unequal ones may be refused though some other placement exists.
    """
    room = [dict(node) for node in nodes]
    for bundle in sorted(gang, key=lambda bundle: sorted(bundle.values(), reverse=True), reverse=True):
        place = next((node for node in room if _holds(node, bundle)), None)
        if place is None:
            return False
        for name, amount in bundle.items():
            place[name] = place.get(name, 0.0) - amount
    return True


def _holds(node: Bundle, bundle: Bundle) -> bool:
    return all(node.get(name, 0.0) + ROUNDING >= amount for name, amount in bundle.items())


def _too_large(job: Waiting, nodes: Sequence[Bundle]) -> str:
    asked = {name for gang in job.gangs for bundle in gang for name in bundle}
    offers = "; ".join(amounts({name: node.get(name, 0.0) for name in sorted(asked)}) for node in nodes)
    return f"asks for {' or '.join(total(list(gang)) for gang in job.gangs)}; the nodes have {offers or 'nothing'}"
