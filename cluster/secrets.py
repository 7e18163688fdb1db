"""Secrets of jobs: files beside the queue that only its user can read, named to the job by a variable.

They keep a secret out of the store, its listings, the logs and Ray's runtime environment, all of which everybody can
read who can reach them. They do not keep it from programs of the same user on machines that see the queue's folder, nor
from root.
"""

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import FilesUnavailableError, InputError
from cluster.spec import JobSpec

MAX_BYTES = 2**20


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


def keep(anchor: Path, spec: JobSpec, given: dict[str, bytes]) -> JobSpec:
    """A job with copies of secrets beside the queue, and variables that name them.

    Raises:
        FilesUnavailableError: they cannot be written now.
    """
    folder = anchor.with_name("secrets") / uuid.uuid4().hex
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.parent.stat().st_uid == os.getuid():
            folder.parent.chmod(0o1777)  # others of the team keep theirs there too, each job's in a folder of its own
        folder.mkdir(mode=0o700)
        for name, content in given.items():
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise FilesUnavailableError(f"--secret: {folder} cannot be written: {error.strerror}") from None
    variables = {f"{name}_FILE": str(folder / name) for name in given}
    return spec.model_copy(update={"environment": {**spec.environment, **variables}})


def files(anchor: Path, environment: dict[str, str]) -> list[Path]:
    """The files with secrets that a job's variables name."""
    kept = anchor.with_name("secrets")
    return [Path(value) for value in environment.values() if Path(value).parent.parent == kept]


def forget(anchor: Path, environment: dict[str, str]) -> None:
    """Remove the secrets that a job's variables name."""
    for path in files(anchor, environment):
        shutil.rmtree(path.parent, ignore_errors=True)
