"""A temporary folder that no other user of the machine can enter, whatever is made in it."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = "/tmp"  # noqa: S108 - whose the folder in it is is looked at; Ray's paths have no room for a longer one


def private_folder() -> Path:
    """The same folder each time, of mode 700; another one if somebody else was there."""
    usual = Path(TEMPORARY, f"dualview-{os.getuid()}")
    with suppress(OSError):
        usual.mkdir(mode=0o700, exist_ok=True)
        status = usual.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return usual
    return Path(tempfile.mkdtemp(prefix="dv-"))


def is_ours(file: Path) -> bool:
    """Whether a file is this user's or root's, and nobody else can write to it."""
    try:
        status = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o022
