"""The queue's memory: jobs, attempts and events in a SQL database, every change one transaction.

An attempt is committed before Ray is told of it, under a submission id that nobody else uses and that Ray takes only
once. So whoever looks at the database after a crash knows what may be running, and can ask Ray about it.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, ForeignKey, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from cluster.errors import InputError
from cluster.spec import ENDED, Bundle, Ending, JobSpec, judge

SCHEMA = "0001"
BUSY_TIMEOUT_S = 30


class _Base(DeclarativeBase):
    type_annotation_map = {list[str]: JSON, dict[str, str]: JSON, list[list[Bundle]]: JSON}  # noqa: RUF012


class _Queue(_Base):
    __tablename__ = "queue"

    id: Mapped[str] = mapped_column(primary_key=True)


class Job(_Base):
    """A submitted job.

    Attributes:
        reason: why it waits, what it does, or how it ended.
        cancel_requested: someone wants it gone; the dispatcher sees to it if it runs.
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
    ended_at: Mapped[float | None]


class Attempt(_Base):
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


class Event(_Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    text: Mapped[str]


class Store:
    """The queue of one database.

    Attributes:
        folder: beside the database: snapshots, logs and the dispatcher's lock.
        id: tells this queue's attempts from those of other queues on the same Ray cluster.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        """Use `Store.open`."""
        self._engine, self.folder = engine, folder
        with self._session() as session:
            self.id = session.scalars(select(_Queue.id)).one()

    @classmethod
    def open(cls, url: str) -> "Store":
        """The queue at a URL such as `sqlite:////var/dualview/queue/queue.db`; made if there is none.

        Raises:
            InputError: no URL of a SQLite file, a file that is something else, or of another schema version.
        """
        file = _sqlite_file(url)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            engine = _engine(file)
            with engine.begin() as connection:
                _check_or_make(connection, url)
            return cls(engine, file.parent)
        except OSError as error:
            raise InputError(f"--queue {url}: {error.strerror}; allowed: a place to write to") from None
        except DBAPIError as error:
            raise InputError(f"--queue {url}: {error.orig}; allowed: the database of a queue, or no file yet") from None

    @property
    def snapshots(self) -> Path:
        """Where code archives are kept."""
        return self.folder / "snapshots"

    def log(self, attempt: Attempt) -> Path:
        """Where the output of an attempt is kept once it has ended."""
        return self.folder / "logs" / f"{attempt.submission_id}.log"

    def submit(self, spec: JobSpec) -> Job:
        """A new job at the end of its priority."""
        with self._session() as session:
            job = Job(**spec.model_dump(), submitted_at=time.time())
            session.add(job)
            session.flush()
            _note(session, job.id, f"submitted with priority {job.priority}")
            return job

    def job(self, job_id: int) -> Job:
        """One job.

        Raises:
            InputError: there is none of this id.
        """
        with self._session() as session:
            return _job(session, job_id)

    def jobs(self, *states: str) -> Sequence[Job]:
        """The jobs in these states, or all; oldest first."""
        query = select(Job).order_by(Job.id)
        with self._session() as session:
            return session.scalars(query.where(Job.state.in_(states)) if states else query).all()

    def attempts(self, job_id: int | None = None) -> Sequence[Attempt]:
        """The attempts of a job, or the open ones of all jobs; oldest first."""
        chosen = Attempt.ended_at.is_(None) if job_id is None else Attempt.job_id == job_id
        with self._session() as session:
            return session.scalars(select(Attempt).where(chosen).order_by(Attempt.id)).all()

    def events(self, job_id: int) -> Sequence[Event]:
        """What happened to a job; oldest first."""
        with self._session() as session:
            return session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id)).all()

    def cancel(self, job_id: int) -> Job:
        """Cancel a job: at once if it waits, through the dispatcher if it runs.

        Raises:
            InputError: there is no such job, or it has ended.
        """
        with self._session() as session:
            job = _job(session, job_id)
            if job.state in ENDED:
                raise InputError(f"job {job_id}: has ended ({job.state}); allowed: a job that waits or runs")
            job.cancel_requested = True
            if job.state == "queued":
                _end(session, job, "cancelled", "cancelled while it waited")
            else:
                _note(session, job.id, "cancellation requested")
            return job

    def explain(self, reasons: dict[int, str]) -> None:
        """Say of waiting jobs why they wait."""
        with self._session() as session:
            for job in session.scalars(select(Job).where(Job.id.in_(reasons), Job.state == "queued")):
                job.reason = reasons[job.id]

    def begin_attempt(self, job_id: int) -> Attempt | None:
        """Commit that a job is about to be handed to Ray; None if it no longer waits, or another attempt is open."""
        with self._session() as session:
            job = _job(session, job_id)
            if job.state != "queued" or session.scalars(select(Attempt.id).where(Attempt.ended_at.is_(None))).first():
                return None
            number = len(session.scalars(select(Attempt.id).where(Attempt.job_id == job_id)).all()) + 1
            name = f"dualview-{self.id[:8]}-{job_id}-{number}"
            attempt = Attempt(job_id=job_id, number=number, submission_id=name, began_at=time.time())
            session.add(attempt)
            job.state, job.reason = "running", f"attempt {number} is starting"
            _note(session, job_id, f"attempt {number} begins as {name}")
            return attempt

    def confirm(self, attempt: Attempt) -> None:
        """Note that Ray has taken an attempt."""
        with self._session() as session:
            session.merge(attempt).confirmed = True
            _job(session, attempt.job_id).reason = f"attempt {attempt.number} runs as {attempt.submission_id}"

    def end_attempt(self, attempt: Attempt, ending: Ending) -> Job:
        """Close an attempt and move its job on; closing it twice changes nothing."""
        with self._session() as session:
            job, attempt = _job(session, attempt.job_id), session.merge(attempt)
            if attempt.ended_at is not None:
                return job
            faults = select(Attempt.id).where(Attempt.job_id == job.id, Attempt.fault)
            verdict = judge(ending, job.cancel_requested, len(session.scalars(faults).all()))
            attempt.status, attempt.exit_code, attempt.ended_at = ending.status, ending.exit_code, time.time()
            attempt.reason, attempt.fault = verdict.reason, verdict.fault
            if verdict.state == "queued":
                job.state, job.reason = "queued", verdict.reason
                _note(session, job.id, f"attempt {attempt.number}: {verdict.reason}")
            else:
                _end(session, job, verdict.state, verdict.reason)
            return job

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session


def _job(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        last = session.scalars(select(Job.id).order_by(Job.id.desc())).first()
        raise InputError(f"job {job_id}: there is none; allowed: " + (f"1 to {last}" if last else "submit one first"))
    return job


def _end(session: Session, job: Job, state: str, reason: str) -> None:
    job.state, job.reason, job.ended_at = state, reason, time.time()
    _note(session, job.id, f"{state}: {reason}")


def _note(session: Session, job_id: int, words: str) -> None:
    session.add(Event(job_id=job_id, at=time.time(), text=words))


def _sqlite_file(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername != "sqlite" or not (parsed.database or "").startswith("/"):
        raise InputError(f"--queue {url!r}: allowed: sqlite:////an/absolute/path/queue.db")
    return Path(str(parsed.database))


def _engine(file: Path) -> Engine:
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None})
    event.listen(engine, "connect", _configure)
    # SQLite would begin a transaction only at its first write, and could then be refused half way through; and it keeps
    # its default journal, since two processes that both turn a new database to WAL can fail each other
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _configure(connection: Any, _: Any) -> None:  # noqa: ANN401 - the driver's own types
    connection.execute("PRAGMA foreign_keys = ON")


def _check_or_make(connection: Connection, url: str) -> None:
    tables: Iterable[str] = inspect(connection).get_table_names()
    if not tables:
        _make(connection)
        return
    found = connection.scalar(text("SELECT version_num FROM alembic_version")) if "alembic_version" in tables else None
    if found is None or "jobs" not in tables:
        raise InputError(f"--queue {url}: the database of something else; allowed: that of a queue, or no file yet")
    if found != SCHEMA:
        raise InputError(
            f"--queue {url}: schema version {found!r}, made by another version of DualView; allowed: {SCHEMA!r} "
            "(use that version, or another --queue)"
        )


def _make(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.fspath(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(insert(_Queue).values(id=uuid.uuid4().hex))
