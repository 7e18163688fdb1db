"""Files that several processes share: JSON files replaced atomically, and locks released when their process ends."""

import fcntl
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeGuard

from diffusion import durable
from diffusion.bounded import read_bounded
from diffusion.json_text import json_text
from trainer.errors import BusyError, InputError

POLL_SECONDS = 0.5
MAX_JSON_BYTES = 2**28


@contextmanager
def file_lock(
    lock: Path, busy: str, timeout_s: float = 0.0, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on a file; its folder is created.

    Args:
        lock: the lock file.
        busy: first part of the error message: what the process that holds the lock is doing.
        timeout_s: seconds to wait for the lock; 0 does not wait.
        waiting: called in every turn of the wait; may raise to end it.

    Raises:
        BusyError: another process still holds the lock.
        InputError: the folder cannot be written to.
    """
    deadline = time.monotonic() + timeout_s
    try:
        durable.make_folder(lock.parent)
        file = lock.open("a+")
    except OSError as error:
        raise InputError(f"run.storage: {lock.parent}: {error.strerror}; allowed: a folder to write to") from None
    with file:
        while not _lock(file):
            if time.monotonic() >= deadline:
                raise BusyError(f"{busy}; allowed: one at a time")
            waiting()
            time.sleep(POLL_SECONDS)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value read from JSON or YAML is an object: a mapping with text for keys."""
    return isinstance(value, dict)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, is nested too deep, or has more than MAX_JSON_BYTES.
    """
    try:
        return json.loads(read_bounded(path, MAX_JSON_BYTES))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def check_output(out: Path, option: str, own: Collection[str]) -> None:
    """Refuse a folder for results that holds something else; one that is not there is made.

    Args:
        out: the folder.
        option: of the command line, for the message.
        own: files and folders of which the same command leaves at least one.

    Raises:
        InputError: it holds something and none of them, or cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise InputError(f"{option} {out}: {error.strerror}; allowed: a new or an empty folder") from None
    if names and not set(names) & set(own):
        earlier = " or one that this command wrote" if own else ""
        raise InputError(f"{option} {out}: holds {names[0]}; allowed: a new or an empty folder,{earlier}".rstrip(","))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object atomically: readers see the old file or the new one."""
    durable.write_text(path, json_text(values, indent=2) + "\n")
