"""Secrets of jobs: files beside the queue that only its user can read, named to the job by a variable.

They keep a secret out of the store, its listings, the logs and Ray's runtime environment, all of which everybody can
read who can reach them. They do not keep it from programs of the same user on machines that see the queue's folder, nor
from root.

Whoever may write in the queue's folder could put a link where the secrets should be: their folder is opened once, as no
link, and everything happens below what was opened. Each job has a folder of its own there, named by chance.
"""

import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.errors import FilesUnavailableError, InputError
from cluster.spec import JobSpec

MAX_BYTES = 2**20
FOLDER = "secrets"
TOKENS = "tokens"  # of the attempts, which the dispatcher writes
_NAME = re.compile(r"[0-9a-f]{32}")  # of a job's folder


def read(pairs: Sequence[str]) -> dict[str, bytes]:
    """The contents of the files of `--secret NAME=FILE`, by name.

    Raises:
        InputError: a pair that is not NAME=FILE, or a file that cannot be read or is larger than MAX_BYTES.
    """
    found: dict[str, bytes] = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"--secret {name!r}: allowed: NAME=FILE")
        try:
            with Path(file).open("rb") as opened:
                found[name] = opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"--secret {name}: {file}: {error.strerror}; allowed: a file to read") from None
        if len(found[name]) > MAX_BYTES:
            raise InputError(f"--secret {name}: {file} is larger than 1 MiB; allowed: a secret, not data")
    return found


def check_reader(anchor: Path) -> None:
    """Raise InputError if another user dispatches the queue's jobs, who could not read what only this one can."""
    with suppress(FileNotFoundError):
        owner = anchor.with_name(TOKENS).stat().st_uid
        if owner not in (os.getuid(), 0):
            raise InputError(
                f"--secret: user {owner} dispatches the jobs of this queue, who could not read a file that only you "
                "can; allowed: a queue of your own, or a file that its jobs can read, named with --env"
            )


def check_variables(anchor: Path, environment: Mapping[str, str]) -> None:
    """Raise InputError if a variable names a secret of another job, which would end with this one."""
    for path in files(anchor, environment):
        raise InputError(f"--env {path.name}_FILE: is a secret of another job; allowed: --secret {path.name}=FILE")


def keep(anchor: Path, spec: JobSpec, given: dict[str, bytes]) -> JobSpec:
    """A job with copies of secrets beside the queue, and variables that name them.

    Raises:
        FilesUnavailableError: they cannot be written now.
    """
    name = uuid.uuid4().hex
    path = anchor.with_name(FOLDER) / name
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
            with _opened(anchor) as folder:
                os.fchmod(folder, 0o1777)  # others of the team keep theirs there too, each job's in a folder of its own
        with _opened(anchor) as folder:
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
                for each, content in given.items():
                    _write(folder, f"{name}/{each}", content)
            except OSError:
                _remove(folder, name)
                raise
    except OSError as error:
        raise FilesUnavailableError(f"--secret: {path} cannot be written: {error.strerror}") from None
    variables = {f"{each}_FILE": str(path / each) for each in given}
    return spec.model_copy(update={"environment": {**spec.environment, **variables}})


def files(anchor: Path, environment: Mapping[str, str]) -> list[Path]:
    """The files with secrets that a job's variables name, as `keep` names them."""
    kept = anchor.with_name(FOLDER)
    return [
        path
        for name, path in ((name, Path(value)) for name, value in environment.items())
        if path.parent.parent == kept and _NAME.fullmatch(path.parent.name) and name == f"{path.name}_FILE"
    ]


def forget(anchor: Path, environment: Mapping[str, str]) -> None:
    """Remove the secrets that a job's variables name."""
    if names := {path.parent.name for path in files(anchor, environment)}:
        with suppress(OSError), _opened(anchor) as folder:
            for name in names:
                _remove(folder, name)


def collect(anchor: Path, environments: Iterable[Mapping[str, str]], written_before: float, dry_run: bool) -> int:
    """Remove secrets that no job's variables name; returns of how many jobs.

    Args:
        anchor: the queue's.
        environments: the variables of the jobs that have not ended.
        written_before: a time; what is younger may be of a job that is being submitted.
        dry_run: whether only to count.
    """
    in_use = {path.parent.name for variables in environments for path in files(anchor, variables)}
    found = 0
    with suppress(OSError), _opened(anchor) as folder:
        for name in os.listdir(folder):
            if name not in in_use and _NAME.fullmatch(name) and _modified(folder, name) < written_before:
                if not dry_run:
                    _remove(folder, name)
                found += dry_run or not _exists(folder, name)
    return found


@contextmanager
def _opened(anchor: Path) -> Generator[int]:
    """A descriptor of the folder of all jobs' secrets.

    Raises:
        OSError: there is none, it is a link, or others than who made it could take a job's folder out of it.
    """
    folder = os.open(anchor.with_name(FOLDER), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.getuid() and not status.st_mode & stat.S_ISVTX:
            raise PermissionError(1, "it is another user's, who could take them away")
        yield folder
    finally:
        os.close(folder)


def _write(folder: int, name: str, content: bytes) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _remove(folder: int, name: str) -> None:
    shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _modified(folder: int, name: str) -> float:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:  # somebody was faster
        return time.time()
