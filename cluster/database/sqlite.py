"""A queue in a SQLite file: for one machine, without a server."""

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, update

from cluster import durable
from cluster.database import lock, schema
from cluster.database.lead import Lead
from cluster.database.tables import Queue

BUSY_TIMEOUT_S = 30


class SqliteFile:
    """A SQLite file.

    Attributes:
        name: its path.
        file: its path.
        default_files: where its queue keeps snapshots and logs unless told otherwise: beside it.
        where_led: where its dispatcher is looked for.
    """

    where_led: str = " on this machine"

    def __init__(self, file: Path) -> None:
        """The file need not exist."""
        self.name = str(file)
        self.file: Path | None = file
        self.default_files: str | None = str(file.parent)
        self._path = file

    def exists(self) -> bool:
        """Whether there is a file; without a queue in it, it has been damaged, or is something else."""
        return self._path.exists()

    def create(self, files: str | None) -> None:
        """Make a queue whole under another name, and give it its own unless another process was first."""
        durable.check_folder(self._path.parent, f"--store sqlite:///{self._path}")
        durable.make_folder(self._path.parent)
        part = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        with _folder_locked(self._path.parent):
            if self._path.exists():
                return
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, durable.PRIVATE)
            engine = SqliteFile(part).connect()
            try:
                with engine.begin() as connection:
                    schema.make(connection, files)
                engine.dispose()  # SQLite has synced it
                os.fchmod(descriptor, durable.mode(part.parent))  # what SQLite writes beside it follows
                durable.replace_durably(part, self._path)
            finally:
                engine.dispose()
                os.close(descriptor)  # once SQLite has no locks on it, which that would give up
                part.unlink(missing_ok=True)

    def upgrade(self, name: str) -> None:
        """Bring a queue up to this version, in one transaction.

        Args:
            name: what was given for it, for errors.

        Raises:
            InputError: no queue there, of a version that is not known, or of an earlier one with a dispatcher.
        """
        engine = self.connect()
        with engine.connect().execution_options(**schema.READ_ONLY) as connection, connection.begin():
            earlier = schema.is_earlier(connection, name)
        engine.dispose()
        if not earlier:
            return
        engine = _engine(self._path)  # without foreign keys, which would see a table that is made anew as emptied
        with _folder_locked(self._path.parent), lock.hold(self._path, f"--store {name}: of an earlier version"):
            try:
                with engine.begin() as connection:
                    if schema.is_earlier(connection, name):  # or another process was first
                        schema.migrate(connection)
            finally:
                engine.dispose()

    def connect(self) -> Engine:
        """An engine; a transaction with `schema.READ_ONLY` does not take the lock for writing."""
        engine = _engine(self._path)
        event.listen(engine, "connect", _configure)
        return engine

    @contextmanager
    def lead(self, report: Callable[[str], None], stopped: Callable[[float], bool]) -> Generator[Lead | None]:
        """Lead while this process lives: the system releases the lock of its file however it ends.

        Args:
            report: is told nothing here: nobody waits for the lead.
            stopped: waits for so many seconds; whether to wait no longer.

        Raises:
            InputError: another dispatcher leads.
        """
        del report, stopped
        with lock.hold(self._path):
            engine, holder = self.connect(), uuid.uuid4().hex
            taking = update(Queue).values(epoch=Queue.epoch + 1, holder=holder).returning(Queue.epoch)
            try:
                with engine.begin() as connection:
                    epoch = connection.scalar(taking)
            finally:
                engine.dispose()
            yield Lead(int(epoch or 0), holder)

    def is_led(self) -> bool:
        """Whether a dispatcher runs for the queue on this machine."""
        return lock.is_held(self._path)


def _engine(file: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(file)), connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
    )
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
    connection.execute("PRAGMA case_sensitive_like = ON")


@contextmanager
def _folder_locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
