"""Why a job waits: codes that scripts can rely on, in the order in which they are looked at.

The first that applies is the job's reason; a job to which none applies starts.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a job waits."""

    NEW = "new"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    HELD = "held"
    PARKED = "parked"
    DEPENDENCY = "dependency"
    IMPOSSIBLE = "impossible"
    BACK_OFF = "back_off"
    QUEUE_RUNNING = "queue_running"
    USER_RUNNING = "user_running"
    QUEUE_MAXIMUM = "queue_maximum"
    ATTEMPTS = "attempts"
    PREEMPTING = "preempting"
    OTHERS = "others"
    RESOURCES = "resources"
    RESERVED = "reserved"


EXPLANATIONS = {
    Reason.NEW: "no dispatcher has looked at it yet",
    Reason.UNAVAILABLE: "Ray or the queue's database does not answer",
    Reason.DRAINING: "nothing starts until `drain --off`",
    Reason.HELD: "somebody holds it (`hold`) until it is released (`release`)",
    Reason.PARKED: "the dispatcher cannot handle it; `release` tries again",
    Reason.DEPENDENCY: "it waits for other jobs (`--after`)",
    Reason.IMPOSSIBLE: "the nodes could not hold it even if nothing else ran, or its queue may never hold so much",
    Reason.BACK_OFF: "its last attempt failed a short time ago",
    Reason.QUEUE_RUNNING: "its queue runs as many jobs as it may",
    Reason.USER_RUNNING: "its user runs as many jobs in this queue as a user may",
    Reason.QUEUE_MAXIMUM: "its queue would hold more than its maximum share",
    Reason.ATTEMPTS: "the dispatcher runs as many jobs as it may",
    Reason.PREEMPTING: "other jobs are giving their machines back for it",
    Reason.OTHERS: "programs that are not the queue's hold what it needs",
    Reason.RESOURCES: "what it needs is in use",
    Reason.RESERVED: "there is room, but taking it could delay a job ahead of it",
}
