"""A temporary folder that no other user of the machine can enter, whatever is made in it."""

import functools
import grp
import os
import pwd
import secrets
import stat
import sys
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


def read_own(file: Path) -> str | None:
    """The text of a small file that is this user's or root's and that nobody else can write to; None for any other."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, errors="replace") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.getuid(), 0) or _others_write(status):
            return None
        return opened.read(4096).strip() or None


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read, in the place of whatever has its name."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="backslashreplace") as new:
        new.write(text)


def is_ours(path: Path) -> bool:
    """Whether a file or folder, which is no link, is this user's or root's, and nobody else can write to it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(status.st_mode) and status.st_uid in (os.getuid(), 0) and not _others_write(status)


def _others_write(status: os.stat_result) -> bool:
    """Whether others than the owner can write to a file: everybody, or a group that is not the owner's alone."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
        alone = (group.gr_gid, group.gr_name) == (owner.pw_gid, owner.pw_name) and not {*group.gr_mem} - {owner.pw_name}
    except KeyError:  # without names, as in a container
        alone = status.st_uid == status.st_gid
    return bool(status.st_mode & (0o002 if alone else 0o022))


@functools.cache
def warn_of_others(folder: Path) -> None:
    """Say, once, that other users of this machine can put files into the folder of a Ray that jobs are given to."""
    if open_to_others(folder):
        print(
            f"warning: every user of this machine can replace the code of jobs in {folder}: start Ray with --temp-dir "
            "in a folder of mode 700",
            file=sys.stderr,
        )


def open_to_others(folder: Path) -> bool:
    """Whether other users of this machine can put files into a folder."""
    try:
        ways = [each.stat().st_mode & 0o001 for each in folder.resolve().parents]
        return bool(folder.stat().st_mode & 0o002) and all(ways)
    except OSError:  # it is another machine's
        return False


def use_private_token() -> None:
    """Let a Ray that this process starts ask for a token that no other user can read.

    Ray would put one into the home with the mode of any other file. Nothing where the environment says which, or none.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        file = private_folder() / "ray_token"
        part = file.with_name(f"ray_token.{secrets.token_hex(4)}")  # whole, before anybody reads it
        write_private(part, secrets.token_hex(32))
        try:
            with suppress(FileExistsError):
                os.link(part, file)
        finally:
            part.unlink()
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
