"""The queue's database as a file: made whole, opened, and brought up to this version."""

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cluster import dispatcher_lock, durable
from cluster.errors import InputError
from cluster.tables import Queue

VERSION = "0002"
EARLIER_VERSIONS = ("0001",)
BUSY_TIMEOUT_S = 30
READ_ONLY = {"only_reads": True}


def database_file(url: str) -> Path:
    """The file of a URL such as `sqlite:////var/dualview/queue/queue.db`.

    Raises:
        InputError: it is not that of a SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername != "sqlite" or not (parsed.database or "").startswith("/"):
        raise InputError(f"--store {url!r}: allowed: sqlite:////an/absolute/path/queue.db")
    return Path(str(parsed.database))


def connect(file: Path) -> Engine:
    """An engine for a database; a transaction with READ_ONLY does not take the lock for writing."""
    engine = _engine(file)
    event.listen(engine, "connect", _configure)
    return engine


def create(file: Path) -> None:
    """Make a queue's database whole under another name, and give it its own unless another process was first.

    So a file that is there without a queue in it has been damaged, or is something else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with _folder_locked(file.parent):
        if file.exists():
            return
        engine = connect(part)
        try:
            with engine.begin() as connection:
                _migrate(connection)
                connection.execute(insert(Queue).values(id=uuid.uuid4().hex))
            engine.dispose()  # SQLite has synced it
            durable.replace_durably(part, file)
        finally:
            engine.dispose()
            part.unlink(missing_ok=True)


def upgrade(file: Path, url: str) -> None:
    """Bring a queue's database up to this version, in one transaction.

    Args:
        file: the database.
        url: what was given for it, for errors.

    Raises:
        InputError: no queue there, of a version that is not known, or of an earlier one with a dispatcher.
    """
    engine = connect(file)
    with engine.connect().execution_options(**READ_ONLY) as connection, connection.begin():
        version = _version(connection, url)
    engine.dispose()
    if version == VERSION:
        return
    if version not in EARLIER_VERSIONS:
        raise InputError(
            f"--store {url}: schema version {version!r}, made by another version of DualView; allowed: "
            f"{VERSION!r} (use that version, or another --store)"
        )
    engine = _engine(file)  # without foreign keys, which would see a table that is made anew as emptied
    with _folder_locked(file.parent), dispatcher_lock.hold(file, f"--store {url}: of an earlier version"):
        try:
            with engine.begin() as connection:
                if _version(connection, url) != VERSION:  # or another process was first
                    _migrate(connection)
        finally:
            engine.dispose()


def _version(connection: Connection, url: str) -> str:
    tables: Iterable[str] = inspect(connection).get_table_names()
    version = (
        connection.scalar(text("SELECT version_num FROM alembic_version")) if "alembic_version" in tables else None
    )
    if version is None or "jobs" not in tables:
        raise InputError(f"--store {url}: not the database of a queue; allowed: that of a queue, or no file yet")
    return version


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.fspath(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


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
