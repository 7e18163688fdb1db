"""The queue's memory: jobs, attempts and events in a SQL database, every change one transaction.

An attempt is committed before Ray is told of it, under a submission id that nobody else uses and that Ray takes only
once. So whoever looks at the database after a crash knows what may be running, and can ask Ray about it.
"""

import os
import sqlite3
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from cluster.errors import InputError, StoreUnavailableError
from cluster.spec import ENDED, Ending, JobSpec, judge
from cluster.tables import Attempt, Event, Job, Queue

SCHEMA = "0001"
BUSY_TIMEOUT_S = 30
READ_ONLY = {"only_reads": True}
SHORT_S, HOLD_S = 5.0, 30.0


class Store:
    """The queue of one database.

    Attributes:
        file: the database; snapshots and logs are beside it.
        id: tells this queue's attempts from those of other queues on the same Ray cluster.
    """

    def __init__(self, engine: Engine, file: Path) -> None:
        """Use `Store.open`."""
        self._engine, self.file = engine, file
        with self._session(write=False) as session:
            self.id = session.scalars(select(Queue.id)).one()

    @classmethod
    def open(cls, url: str, make: bool = True) -> "Store":
        """The queue at a URL such as `sqlite:////var/dualview/queue/queue.db`.

        Args:
            url: of a SQLite file.
            make: whether to make a queue where there is none.

        Raises:
            InputError: no URL of a SQLite file, no queue, a file that is something else, or of another schema version.
        """
        file = _sqlite_file(url)
        if not make and not file.exists():
            raise InputError(f"--queue {url}: no queue there yet; `python -m cluster submit` makes one")
        engine = _engine(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with engine.begin() as connection:
                _check_or_make(connection, url)
            return cls(engine, file)
        except OSError as error:
            raise InputError(f"--queue {url}: {error.strerror}; allowed: a place to write to") from None
        except DBAPIError as error:
            engine.dispose()
            raise InputError(f"--queue {url}: {error.orig}; allowed: the database of a queue, or no file yet") from None
        except InputError:
            engine.dispose()
            raise

    def bind(self, address: str, moved: bool) -> None:
        """Note the Ray cluster that the queue's attempts run on; another one would know none of them.

        Args:
            address: of the cluster.
            moved: whether the cluster of the open attempts is gone.

        Raises:
            InputError: there are open attempts on another cluster, which has not `moved`.
        """
        with self._session() as session:
            queue = session.scalars(select(Queue)).one()
            attempts = session.scalars(select(Attempt).where(Attempt.ended_at.is_(None))).all()
            if attempts and queue.address not in (None, address) and not moved:
                raise InputError(
                    f"--address {address}: job {attempts[0].job_id} was started at {queue.address}; allowed: that "
                    "address, or --moved if that cluster is gone or has this address now"
                )
            queue.address = address

    @property
    def snapshots(self) -> Path:
        """Where code archives are kept."""
        return self.file.with_name("snapshots")

    @property
    def lock(self) -> Path:
        """Held by the dispatcher that serves the queue."""
        return self.file.with_name(f"{self.file.name}.dispatcher")

    def log(self, attempt: Attempt) -> Path:
        """Where the output of an attempt is kept once it has ended."""
        return self.file.with_name("logs") / f"{attempt.submission_id}.log"

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
        with self._session(write=False) as session:
            return _job(session, job_id)

    def jobs(self, *states: str) -> Sequence[Job]:
        """The jobs in these states, or all; oldest first."""
        query = select(Job).order_by(Job.id)
        with self._session(write=False) as session:
            return session.scalars(query.where(Job.state.in_(states)) if states else query).all()

    def attempts(self, job_id: int | None = None) -> Sequence[Attempt]:
        """The attempts of a job, or the open ones of all jobs; oldest first."""
        chosen = Attempt.ended_at.is_(None) if job_id is None else Attempt.job_id == job_id
        with self._session(write=False) as session:
            return session.scalars(select(Attempt).where(chosen).order_by(Attempt.id)).all()

    def events(self, job_id: int) -> Sequence[Event]:
        """What happened to a job; oldest first."""
        with self._session(write=False) as session:
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
        """Note that Ray has taken an attempt; one that has ended stays as it is."""
        with self._session() as session:
            found = session.get_one(Attempt, attempt.id)
            if found.ended_at is None:
                found.confirmed = True
                _job(session, found.job_id).reason = f"attempt {found.number} runs as {found.submission_id}"

    def end_attempt(self, attempt: Attempt, ending: Ending) -> Job:
        """Close an attempt and move its job on; closing it twice changes nothing."""
        with self._session() as session:
            job, attempt = _job(session, attempt.job_id), session.get_one(Attempt, attempt.id)
            if attempt.ended_at is not None:
                return job
            faults = select(Attempt.id).where(Attempt.job_id == job.id, Attempt.fault)
            verdict = judge(ending, job.cancel_requested, len(session.scalars(faults).all()))
            now = time.time()
            attempt.status, attempt.exit_code, attempt.ended_at = ending.status, ending.exit_code, now
            attempt.reason, attempt.fault = verdict.reason, verdict.fault
            if verdict.state == "queued":
                job.state, job.reason = "queued", verdict.reason
                if now - attempt.began_at < SHORT_S:
                    job.held_until = now + HOLD_S
                _note(session, job.id, f"attempt {attempt.number}: {verdict.reason}")
            else:
                _end(session, job, verdict.state, verdict.reason)
            return job

    @contextmanager
    def _session(self, write: bool = True) -> Generator[Session]:
        engine = self._engine if write else self._engine.execution_options(**READ_ONLY)
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except DBAPIError as error:
            raise StoreUnavailableError(f"the queue's database {self.file}: {error.orig}") from error


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
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    """Take the write lock at the beginning, or SQLite could refuse it half way through.

    SQLite keeps its default journal: two processes that both turn a new database to WAL can fail each other.
    """
    reading = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _configure(connection: sqlite3.Connection, _: object) -> None:
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
    connection.execute(insert(Queue).values(id=uuid.uuid4().hex))
