"""Atomic and durable file writes: write, sync, rename, sync the folder.

What is written is for its user alone, or for all who may write in its folder: a team that shares a queue opens that.
"""

import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cluster.errors import InputError

PRIVATE = 0o600
OTHERS = 0o022  # who may write in a folder, beside its user


def mode(folder: Path) -> int:
    """The mode of a file in a folder: to be read and written by those who may write in the folder."""
    others = _others(folder)
    return PRIVATE | others | others << 1


def _others(folder: Path) -> int:
    """Who may write in a folder and change what others have put there; /tmp is open, but to nobody's files."""
    status = folder.stat()
    return 0 if status.st_mode & stat.S_ISVTX else status.st_mode & OTHERS


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it as usual: like the one it is in where that is open, else for its user alone."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    others = _others(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700 | others | others << 1 | others >> 1 | (folder.parent.stat().st_mode & stat.S_ISGID))


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers see either the old content or the new, even after a power cut."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
            os.fchmod(file.fileno(), mode(path.parent))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_own(path: Path) -> int:
    """A descriptor, to read, of a file or folder that this user made, or whose folder it is in; closed to all others.

    Raises:
        InputError: others could have put it there.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"{path}: a link, which others could have put there; allowed: none") from None
        raise error
    status = os.fstat(descriptor)
    if status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        os.close(descriptor)
        raise InputError(f"{path}: others could have put it there; allowed: one of this user's own")
    if status.st_mode & 0o077:  # a volume that is mounted for a group has every file opened to it
        with suppress(PermissionError):
            os.fchmod(descriptor, status.st_mode & 0o700)
    return descriptor


def check_folder(folder: Path, name: str) -> None:
    """Check that nobody else can put files into a folder beside what will be there, unless all may change everything.

    Args:
        folder: the folder; what is not there yet will be this user's.
        name: what was given for it, for errors.

    Raises:
        InputError: it is one such as /tmp.
    """
    with suppress(FileNotFoundError):
        status = folder.stat()
        if status.st_mode & stat.S_ISVTX and status.st_mode & OTHERS:
            raise InputError(f"{name}: everybody can put files into {folder}; allowed: a folder of its own there")


def replace_durably(part: Path, path: Path) -> None:
    """Rename a synced file to `path`, and sync the folder so that the new name is on disk."""
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
