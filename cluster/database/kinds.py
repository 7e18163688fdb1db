"""Which kind of database a URL names."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cluster.database.lead import Lead
from cluster.database.postgres import PostgresDatabase
from cluster.database.sqlite import SqliteFile
from cluster.errors import InputError

POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


class Database(Protocol):
    """A database that may hold a queue; see `SqliteFile` and `PostgresDatabase`.

    Attributes:
        name: for people; without a password.
        file: its file, if it is one.
        default_files: where its queue keeps snapshots and logs unless told otherwise.
        where_led: ends the sentence that no dispatcher is running.
    """

    name: str
    file: Path | None
    default_files: str | None
    where_led: str

    def exists(self) -> bool:
        """Whether there is a queue, or what should be one."""
        ...

    def create(self, files: str | None) -> None:
        """Make a queue unless another process was first."""
        ...

    def upgrade(self, name: str) -> None:
        """Bring a queue up to this version."""
        ...

    def connect(self) -> Engine:
        """An engine."""
        ...

    def lead(
        self, report: Callable[[str], None], stopped: Callable[[float], bool]
    ) -> AbstractContextManager[Lead | None]:
        """Lead, which one dispatcher does at a time."""
        ...

    def is_led(self) -> bool:
        """Whether a dispatcher is running for the queue."""
        ...


def database(url: str) -> Database:
    """The database of a URL such as `sqlite:////var/dualview/queue/queue.db` or `postgresql://server/queue`.

    Raises:
        InputError: it is that of neither.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is not None and parsed.drivername == "sqlite" and (parsed.database or "").startswith("/"):
        return SqliteFile(Path(str(parsed.database)))
    if parsed is not None and parsed.drivername in POSTGRES and parsed.database:
        return PostgresDatabase(parsed)
    kind = url.partition(":")[0] if "@" in url or "password" in url else url  # the rest may be a password
    raise InputError(
        f"--store {kind!r}: allowed: sqlite:////an/absolute/path/queue.db or postgresql://user@server/database"
    )
