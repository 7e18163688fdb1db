"""The version of the tables, and how a database comes to it; the same for every kind of database."""

import os
import uuid
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, text

from cluster.database.tables import Queue
from cluster.errors import InputError

VERSION = "0003"
EARLIER_VERSIONS = ("0001", "0002")
READ_ONLY = {"only_reads": True}  # options of a transaction that does not take the lock for writing


def make(connection: Connection, files: str | None) -> None:
    """Make the tables, and the row of a queue that keeps its snapshots and logs at `files`; see `Queue.files`."""
    migrate(connection)
    connection.execute(insert(Queue).values(id=uuid.uuid4().hex, files=files))


def is_earlier(connection: Connection, name: str) -> bool:
    """Whether a queue is of an earlier version, which can be migrated.

    Args:
        connection: to the database.
        name: what the database is called in errors.

    Raises:
        InputError: there is no queue in it, or it was made by another version of DualView.
    """
    tables = inspect(connection).get_table_names()
    version = (
        connection.scalar(text("SELECT version_num FROM alembic_version")) if "alembic_version" in tables else None
    )
    if version is None or "jobs" not in tables:
        raise InputError(f"--store {name}: not the database of a queue; allowed: that of a queue, or an empty one")
    if version != VERSION and version not in EARLIER_VERSIONS:
        raise InputError(
            f"--store {name}: schema version {version!r}, made by another version of DualView; allowed: "
            f"{VERSION!r} (use that version, or another --store)"
        )
    return version != VERSION


def migrate(connection: Connection) -> None:
    """Bring the tables to VERSION, in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.fspath(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
