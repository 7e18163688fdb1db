"""The queue's database: jobs, attempts and events in SQLite, every change one transaction.

An attempt is committed before it is submitted to Ray, under a unique submission id that Ray accepts only once. So after
a crash the database shows what may be running, and Ray can be asked about it.
"""

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from cluster import durable
from cluster.errors import InputError, StoreUnavailableError
from cluster.spec import END_STATES, Ending, JobSpec, next_transition
from cluster.tables import Attempt, Event, Job, Queue

SCHEMA_VERSION = "0001"
BUSY_TIMEOUT_S = 30
READ_ONLY = {"only_reads": True}
SHORT_ATTEMPT_S = 5.0  # an attempt that ends sooner has its job held back
RETRY_HOLD_S = 30.0  # for so long


class Store:
    """The queue in one database.

    Attributes:
        file: the database file; snapshots and logs are beside it.
        id: distinguishes this queue's attempts from those of other queues on the same Ray cluster.
    """

    def __init__(self, engine: Engine, file: Path) -> None:
        """Use `Store.open`."""
        self._engine, self.file = engine, file
        with self._session(write=False) as session:
            self.id = session.scalars(select(Queue.id)).one()

    @classmethod
    def open(cls, url: str, create: bool = True) -> "Store":
        """Open the queue at a URL such as `sqlite:////var/dualview/queue/queue.db`.

        Args:
            url: URL of a SQLite file.
            create: whether to create the queue if there is none.

        Raises:
            InputError: not the URL of a SQLite file, no queue there, another kind of file, or another schema version.
        """
        file = _database_file(url)
        if not create and not file.exists():
            raise InputError(f"--queue {url}: no queue there yet; `python -m cluster submit` creates one")
        engine = _engine(file)
        try:
            if not file.exists():
                _create(file)
            with engine.begin() as connection:
                _check_schema(connection, url)
            return cls(engine, file)
        except OSError as error:
            raise InputError(f"--queue {url}: {error.strerror}; allowed: a file in a writable folder") from None
        except DBAPIError as error:
            engine.dispose()
            raise InputError(f"--queue {url}: {error.orig}; allowed: the database of a queue, or no file yet") from None
        except InputError:
            engine.dispose()
            raise

    def bind(self, address: str, moved: bool) -> None:
        """Record the Ray cluster that the queue's attempts run on; another cluster would know none of them.

        Args:
            address: the cluster's dashboard.
            moved: whether the cluster of the open attempts no longer exists.

        Raises:
            InputError: attempts are open on another cluster, and not `moved`.
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
        """The folder of code archives."""
        return self.file.with_name("snapshots")

    @property
    def lock(self) -> Path:
        """The file that the queue's dispatcher holds locked."""
        return self.file.with_name(f"{self.file.name}.dispatcher")

    def log(self, attempt: Attempt) -> Path:
        """The file with the output of an attempt that has ended."""
        return self.file.with_name("logs") / f"{attempt.submission_id}.log"

    def submit(self, spec: JobSpec) -> Job:
        """Add a job behind the others of its priority."""
        with self._session() as session:
            job = Job(**spec.model_dump(), submitted_at=time.time())
            session.add(job)
            session.flush()
            _record_event(session, job.id, f"submitted with priority {job.priority}")
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
            if job.state in END_STATES:
                raise InputError(f"job {job_id}: has ended ({job.state}); allowed: a job that waits or runs")
            job.cancel_requested = True
            if job.state == "queued":
                _end(session, job, "cancelled", "cancelled while it waited")
            else:
                _record_event(session, job.id, "cancellation requested")
            return job

    def explain(self, reasons: dict[int, str]) -> None:
        """Record why each waiting job waits; `reasons` is by job id."""
        with self._session() as session:
            for job in session.scalars(select(Job).where(Job.id.in_(reasons), Job.state == "queued")):
                job.reason = reasons[job.id]

    def begin_attempt(self, job_id: int) -> Attempt | None:
        """Record a new attempt, before it is submitted to Ray; None if the job does not wait or any attempt is open."""
        with self._session() as session:
            job = _job(session, job_id)
            if job.state != "queued" or session.scalars(select(Attempt.id).where(Attempt.ended_at.is_(None))).first():
                return None
            number = len(session.scalars(select(Attempt.id).where(Attempt.job_id == job_id)).all()) + 1
            name = f"dualview-{self.id[:8]}-{job_id}-{number}"
            attempt = Attempt(job_id=job_id, number=number, submission_id=name, began_at=time.time())
            session.add(attempt)
            job.state, job.reason = "running", f"attempt {number} is starting"
            _record_event(session, job_id, f"attempt {number} begins as {name}")
            return attempt

    def confirm(self, attempt: Attempt) -> None:
        """Record that Ray has accepted an attempt; one that has ended is left unchanged."""
        with self._session() as session:
            stored = session.get_one(Attempt, attempt.id)
            if stored.ended_at is None:
                stored.confirmed = True
                _job(session, stored.job_id).reason = f"attempt {stored.number} runs as {stored.submission_id}"

    def end_attempt(self, attempt: Attempt, ending: Ending) -> Job:
        """Close an attempt and update its job; closing it again changes nothing."""
        with self._session() as session:
            job, attempt = _job(session, attempt.job_id), session.get_one(Attempt, attempt.id)
            if attempt.ended_at is not None:
                return job
            faults = select(Attempt.id).where(Attempt.job_id == job.id, Attempt.fault)
            transition = next_transition(ending, job.cancel_requested, len(session.scalars(faults).all()))
            now = time.time()
            attempt.status, attempt.exit_code, attempt.ended_at = ending.status, ending.exit_code, now
            attempt.reason, attempt.fault = transition.reason, transition.fault
            if transition.state == "queued":
                job.state, job.reason = "queued", transition.reason
                if now - attempt.began_at < SHORT_ATTEMPT_S:
                    job.held_until = now + RETRY_HOLD_S
                _record_event(session, job.id, f"attempt {attempt.number}: {transition.reason}")
            else:
                _end(session, job, transition.state, transition.reason)
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
        raise InputError(f"job {job_id}: no such job; allowed: " + (f"1 to {last}" if last else "submit one first"))
    return job


def _end(session: Session, job: Job, state: str, reason: str) -> None:
    job.state, job.reason, job.ended_at = state, reason, time.time()
    _record_event(session, job.id, f"{state}: {reason}")


def _record_event(session: Session, job_id: int, text: str) -> None:
    session.add(Event(job_id=job_id, at=time.time(), text=text))


def _database_file(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername != "sqlite" or not (parsed.database or "").startswith("/"):
        raise InputError(f"--queue {url!r}: allowed: sqlite:////an/absolute/path/queue.db")
    return Path(str(parsed.database))


def _engine(file: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(file)), connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    """Take the write lock at the start of a transaction; SQLite might not grant it later.

    SQLite keeps its default journal mode, since two processes that switch a new database to WAL at once can fail.
    """
    reading = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def _create(file: Path) -> None:
    """Make a queue's database whole under another name, and give it its own unless another process was first.

    So a file that is there without a queue in it has been damaged, or is something else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with _folder_locked(file.parent):
        if file.exists():
            return
        engine = _engine(part)
        try:
            with engine.begin() as connection:
                _create_schema(connection)
            engine.dispose()  # SQLite has synced it
            durable.replace_durably(part, file)
        finally:
            engine.dispose()
            part.unlink(missing_ok=True)


@contextmanager
def _folder_locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_schema(connection: Connection, url: str) -> None:
    tables: Iterable[str] = inspect(connection).get_table_names()
    version = (
        connection.scalar(text("SELECT version_num FROM alembic_version")) if "alembic_version" in tables else None
    )
    if version is None or "jobs" not in tables:
        raise InputError(f"--queue {url}: not the database of a queue; allowed: that of a queue, or no file yet")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"--queue {url}: schema version {version!r}, made by another version of DualView; allowed: "
            f"{SCHEMA_VERSION!r} (use that version, or another --queue)"
        )


def _create_schema(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.fspath(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(insert(Queue).values(id=uuid.uuid4().hex))
