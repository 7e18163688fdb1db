"""One dispatcher serves a queue on a machine: a lock that the system releases however the process ends."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cluster import durable
from cluster.errors import InputError


def lock_file(database: Path) -> Path:
    """The file that the dispatcher of a queue holds locked."""
    return database.with_name(f"{database.name}.dispatcher")


@contextmanager
def hold(database: Path, what: str = "") -> Generator[None]:
    """Hold the lock.

    Args:
        database: the queue's.
        what: begins the line of the error.

    Raises:
        InputError: another dispatcher holds it, or the queue's folder is not writable.
    """
    path = lock_file(database)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, durable.PRIVATE)
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_nlink == 1:  # the folder may have been opened since
            os.fchmod(descriptor, durable.mode(path.parent))
        file = os.fdopen(descriptor, "r+")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; allowed: a queue in a writable folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            before = f"{what}, and its dispatcher runs" if what else f"another dispatcher serves the queue {database}"
            raise InputError(f"{before}; allowed: to stop that one; what it has started goes on running") from None
        yield


def is_held(database: Path) -> bool:
    """Whether a dispatcher is running for the queue on this machine."""
    try:
        with lock_file(database).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
