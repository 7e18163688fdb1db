"""Atomic and durable file writes: write, sync, rename, sync the folder.

What is written is for its user alone, or for all who may write in its folder: a team that shares a queue opens that.
"""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

PRIVATE = 0o600
OTHERS = 0o022  # who may write in a folder, beside its user


def mode(folder: Path) -> int:
    """The mode of a file in a folder: to be read and written by those who may write in the folder."""
    others = folder.stat().st_mode & OTHERS
    return PRIVATE | others | others << 1


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it as usual: like the one it is in where that is open, else for its user alone."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    parent = folder.parent.stat()
    others = parent.st_mode & OTHERS if not parent.st_mode & 0o1000 else 0  # /tmp is open, but to nobody's files
    folder.mkdir(exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700 | others | others << 1 | others >> 1 | (parent.st_mode & 0o2000))


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers see either the old content or the new, even after a power cut."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            os.fchmod(file.fileno(), mode(path.parent))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_durably(part: Path, path: Path) -> None:
    """Rename a synced file to `path`, and sync the folder so that the new name is on disk."""
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
