"""Files that are there whole or not at all, also after a power cut.

A rename alone is not durable: of a file whose content has not reached the disk, the new name may hold nothing. So the
content is written and synced first, then renamed, and then the folder is synced, which is where names are kept.
"""

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".writing-"  # of what a process that was killed may leave behind


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that their names are on the disk."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def sync_all(folder: Path) -> None:
    """Have all files of a folder reach the disk, and their names."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path beside `path` to write to, which takes its place once the block ends; after an error nothing changes."""
    temporary = path.with_name(f"{PREFIX}{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one."""
    write_bytes(path, text.encode())
