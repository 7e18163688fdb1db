"""The tables of the queue's database, as `migrations/` creates them. Times are in seconds since the epoch."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, ForeignKey, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HALF_LIFE_S = 24 * 3600.0  # of what queues have used


def held(share: float, seconds: float) -> float:
    """What a share that was held for so long, until now, adds to the average with a half-life."""
    return share * (1 - 0.5 ** (max(0.0, seconds) / HALF_LIFE_S))


class Words(TypeDecorator[str]):
    """Text that every database can store: Postgres has no character 0, and no database what is not Unicode."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The text, with U+FFFD for character 0 and a question mark for half of a pair of surrogates."""
        del dialect
        return value and value.replace("\0", "\ufffd").encode(errors="replace").decode()


class Base(DeclarativeBase):
    """Base of the tables; lists and dictionaries are stored as JSON."""

    type_annotation_map = {str: Words, list[str]: JSON, dict[str, str]: JSON, list[Any]: JSON, dict[str, Any]: JSON}  # noqa: RUF012


class Queue(Base):
    """The database itself: one row.

    Attributes:
        id: distinguishes this queue's attempts from those of other queues on the same Ray cluster.
        address: dashboard of the Ray cluster that its attempts run on.
        draining: whether nothing starts.
        nodes: what the dispatcher saw last of each node: its `total` and its `labels`; empty before.
        files: URI of the folder of its snapshots and logs; None for that of its database.
        epoch: of the last lead; see `cluster.database.lead`.
        holder: a random name of the last lead.
    """

    __tablename__ = "queue"

    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str | None]
    draining: Mapped[bool] = mapped_column(default=False)
    nodes: Mapped[list[Any]] = mapped_column(default=list)
    files: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    holder: Mapped[str] = mapped_column(default="")


class Lease(Base):
    """Who leads: one row, apart from the queue's, which whoever writes holds locked.

    Attributes:
        holder: a random name of the lead.
        leader: the dispatcher that has it, for people.
        until: until when it has it, by the database's clock.
    """

    __tablename__ = "lease"

    id: Mapped[int] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(default="")
    leader: Mapped[str] = mapped_column(default="")
    until: Mapped[float] = mapped_column(default=0.0)


class Team(Base):
    """One of the queues that share the cluster; see `cluster.admission.Terms`.

    Attributes:
        max_priority: no job of it is submitted with a higher priority; None for any.
        usage: the share of the cluster that its ended attempts held, averaged with a half-life, at `usage_at`.
    """

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(default=1.0)
    guaranteed: Mapped[float] = mapped_column(default=0.0)
    maximum: Mapped[float] = mapped_column(default=1.0)
    max_running: Mapped[int | None]
    max_running_per_user: Mapped[int | None]
    max_priority: Mapped[int | None]
    usage: Mapped[float] = mapped_column(default=0.0)
    usage_at: Mapped[float] = mapped_column(default=0.0)

    def usage_until(self, now: float) -> float:
        """`usage`, as it has decayed until now."""
        return self.usage * 0.5 ** (max(0.0, now - self.usage_at) / HALF_LIFE_S)

    def charge(self, share: float, began_at: float, now: float) -> None:
        """Add a share that was held from a time until now."""
        self.usage, self.usage_at = self.usage_until(now) + held(share, now - began_at), now


class Job(Base):
    """A submitted job; fields that are not described here are those of `cluster.spec.JobSpec`.

    Attributes:
        reason: why it waits, what it is doing, or how it ended.
        reason_code: `cluster.reasons.Reason` of a job that waits; empty otherwise.
        start_at: when it is expected to start, to the minute; None if that is not known, or it does not wait.
        cancel_requested: whether it is to be cancelled; if it runs, the dispatcher stops it.
        held_until: it does not start before this time; set when its last attempt ended in a fault.
        hold: why it does not start until somebody releases it: `held` by a person, or `parked`; None otherwise.
        problem: why it is parked.
        waiting_since: since when it waits: it was submitted, released or queued again then.
        preemptions: how many times it made room for another job.
        array_id: the first job of the array that it was submitted with; None without one.
        array_index: its place in the array, from 0.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    command: Mapped[list[str]]
    priority: Mapped[int]
    snapshot: Mapped[str]
    environment: Mapped[dict[str, str]]
    gangs: Mapped[list[Any]]
    driver: Mapped[dict[str, Any]]
    user: Mapped[str]
    queue: Mapped[str]
    max_runtime_s: Mapped[float | None]
    at_the_limit: Mapped[str]
    retries: Mapped[int]
    after: Mapped[dict[str, str]]
    says_when: Mapped[bool]
    array_id: Mapped[int | None]
    array_index: Mapped[int | None]
    key: Mapped[str | None]
    state: Mapped[str] = mapped_column(default="queued")
    reason: Mapped[str] = mapped_column(default="no dispatcher has looked at it yet")
    reason_code: Mapped[str] = mapped_column(default="new")
    start_at: Mapped[float | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    submitted_at: Mapped[float]
    held_until: Mapped[float] = mapped_column(default=0.0)
    hold: Mapped[str | None]
    problem: Mapped[str] = mapped_column(default="")
    waiting_since: Mapped[float] = mapped_column(default=0.0)
    preemptions: Mapped[int] = mapped_column(default=0)
    ended_at: Mapped[float | None]


class Attempt(Base):
    """One submission of a job to Ray.

    Attributes:
        number: 1 for a job's first attempt.
        submission_id: its id in Ray.
        confirmed: whether Ray is known to have accepted it; if not, Ray may or may not have.
        running_at: when its command ran and its gang had formed; None before.
        status: `Ending.status`; None while it is open.
        exit_code: `Ending.exit_code`.
        fault: whether something other than the command ended it.
        placement: where it was put; None for one from before there were placements. See `cluster.store.Placed`.
        cpus: CPUs that it was given.
        gpus: GPUs that it was given.
        share: the dominant share of the cluster that it was given.
        asked: `Asked.to`: what the queue asked of it; None if nothing.
        asked_at: when.
        asked_reason: why.
        asked_by: the job that it makes room for; None if there is none.
        heard_at: when its last heartbeat came; None if it has sent none.
        step: the step that it said it was at.
        saved_step: the step of the newest checkpoint that it said it had.
    """

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    submission_id: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)
    began_at: Mapped[float]
    running_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    status: Mapped[str | None]
    exit_code: Mapped[int | None]
    reason: Mapped[str] = mapped_column(default="")
    fault: Mapped[bool] = mapped_column(default=False)
    placement: Mapped[dict[str, Any] | None]
    cpus: Mapped[float] = mapped_column(default=0.0)
    gpus: Mapped[float] = mapped_column(default=0.0)
    share: Mapped[float] = mapped_column(default=0.0)
    asked: Mapped[str | None]
    asked_at: Mapped[float | None]
    asked_reason: Mapped[str] = mapped_column(default="")
    asked_by: Mapped[int | None]
    heard_at: Mapped[float | None]
    step: Mapped[int | None] = mapped_column(BigInteger)
    saved_step: Mapped[int | None] = mapped_column(BigInteger)


class Event(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    text: Mapped[str]
