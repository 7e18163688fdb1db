"""Files that are there whole or not at all, also after a power cut: written, synced, renamed, the folder synced."""

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        take_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def take_place(part: Path, path: Path) -> None:
    """Rename a file that has been synced, and have the new name reach the disk."""
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
