"""The rows of the queue's database, as `migrations/` makes them."""

from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cluster.spec import Bundle


class Base(DeclarativeBase):
    """What SQLAlchemy collects the tables in."""

    type_annotation_map = {list[str]: JSON, dict[str, str]: JSON, list[list[Bundle]]: JSON}  # noqa: RUF012


class Queue(Base):
    """The queue itself: one row.

    Attributes:
        id: tells this queue's attempts from those of other queues on the same Ray cluster.
        address: the Ray cluster that its attempts run on.
    """

    __tablename__ = "queue"

    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str | None]


class Job(Base):
    """A submitted job.

    Attributes:
        reason: why it waits, what it does, or how it ended.
        cancel_requested: someone wants it gone; the dispatcher sees to it if it runs.
        held_until: not to be started before, since its last attempt ended as soon as it had begun.
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
    """One time that a job was handed to Ray.

    Attributes:
        number: 1 for a job's first attempt.
        submission_id: its name in Ray.
        confirmed: whether Ray is known to have taken it; if not, it may or may not have.
        status: of `Ending`, None while it is open.
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
