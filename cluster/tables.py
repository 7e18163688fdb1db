"""The tables of the queue's database, as `migrations/` creates them. Times are in seconds since the epoch."""

from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cluster.spec import Bundle


class Base(DeclarativeBase):
    """Base of the tables; lists and dictionaries are stored as JSON."""

    type_annotation_map = {list[str]: JSON, dict[str, str]: JSON, list[list[Bundle]]: JSON}  # noqa: RUF012


class Queue(Base):
    """The queue itself: one row.

    Attributes:
        id: distinguishes this queue's attempts from those of other queues on the same Ray cluster.
        address: dashboard of the Ray cluster that its attempts run on.
    """

    __tablename__ = "queue"

    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str | None]


class Job(Base):
    """A submitted job.

    Attributes:
        reason: why it waits, what it is doing, or how it ended.
        cancel_requested: whether it is to be cancelled; if it runs, the dispatcher stops it.
        held_until: it does not start before this time; set when its last attempt ended as soon as it had begun.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    command: Mapped[list[str]]
    priority: Mapped[int]
    snapshot: Mapped[str]
    environment: Mapped[dict[str, str]]
    gangs: Mapped[list[list[Bundle]]]
    state: Mapped[str] = mapped_column(default="queued")
    reason: Mapped[str] = mapped_column(default="no dispatcher has looked at it yet")
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    submitted_at: Mapped[float]
    held_until: Mapped[float] = mapped_column(default=0.0)
    ended_at: Mapped[float | None]


class Attempt(Base):
    """One submission of a job to Ray.

    Attributes:
        number: 1 for a job's first attempt.
        submission_id: its id in Ray.
        confirmed: whether Ray is known to have accepted it; if not, Ray may or may not have.
        status: `Ending.status`; None while it is open.
        exit_code: `Ending.exit_code`.
        fault: whether something other than the command ended it.
    """

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    submission_id: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)
    began_at: Mapped[float]
    ended_at: Mapped[float | None]
    status: Mapped[str | None]
    exit_code: Mapped[int | None]
    reason: Mapped[str] = mapped_column(default="")
    fault: Mapped[bool] = mapped_column(default=False)


class Event(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    text: Mapped[str]
