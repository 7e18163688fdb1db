"""Atomic and durable file writes: write, sync, rename, sync the folder."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers see either the old content or the new, even after a power cut."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
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
