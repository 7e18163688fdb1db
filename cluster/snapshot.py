"""The code a job runs: an archive taken when the job is submitted, named by its SHA-256.

In a git checkout it holds what git knows and what is new and not ignored, as it lies in the folder now. Elsewhere, such
as in the working directory of a submitted job, it holds all files. The same files give the same archive.
"""

import hashlib
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cluster import durable
from cluster.errors import InputError

MAX_BYTES = 100 * 2**20  # what Ray's job server takes
EPOCH = (1980, 1, 1, 0, 0, 0)
SKIPPED = {"__pycache__", ".venv", ".git"}


def files(folder: Path) -> list[str]:
    """The files that a snapshot of the folder would hold.

    Raises:
        InputError: no such folder, nothing in it, more than MAX_BYTES, or a checkout that git cannot read.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder}: no such folder; allowed: the folder that the command runs in")
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = _walk(folder) if listed is None else listed.split("\0")
    found = sorted({name for name in names if name and (folder / name).is_file()})
    if not found:
        raise InputError(f"--working-dir {folder}: no files there; allowed: the folder that the command runs in")
    sizes = {name: (folder / name).stat().st_size for name in found}
    if sum(sizes.values()) > MAX_BYTES:
        raise InputError(
            f"--working-dir {folder}: {sum(sizes.values()) >> 20} MiB of files, the largest "
            f"{max(sizes, key=sizes.__getitem__)}; allowed: at most {MAX_BYTES >> 20} MiB (git leaves out what "
            ".gitignore names)"
        )
    return found


def take(folder: Path, names: Sequence[str], snapshots: Path) -> str:
    """Archive files of a folder into `snapshots`; returns the archive's SHA-256, which is its name.

    Raises:
        InputError: a file cannot be read, or the archive cannot be written.
    """
    part: Path | None = None
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=snapshots, suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "w+b") as file:
            os.fchmod(descriptor, 0o644)  # the dispatcher may be another user
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for entry in names:
                    _add(archive, folder / entry, entry)
            file.flush()
            os.fsync(descriptor)
            file.seek(0)
            digest = hashlib.sha256(file.read()).hexdigest()
        durable.take_place(part, path(snapshots, digest))
    except (OSError, UnicodeError) as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise InputError(f"--working-dir {folder}: cannot be archived into {snapshots}: {error}") from None
    return digest


def path(snapshots: Path, digest: str) -> Path:
    """Where the archive of a digest is."""
    return snapshots / f"{digest}.zip"


def git_commit(folder: Path) -> str | None:
    """The commit a folder is at, `-dirty` appended with uncommitted changes; None outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD") if folder.is_dir() else None
    if not commit:
        return None
    return commit.strip() + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _walk(folder: Path) -> list[str]:
    names: list[str] = []
    for parent, folders, entries in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED]
        names += [str((Path(parent) / name).relative_to(folder)) for name in entries]
    return names


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes())


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's answer; None outside a checkout, and before its first commit."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        if arguments[0] == "rev-parse":  # a checkout without a commit
            return None
        words = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--working-dir {folder}: git fails there: {words}") from None
    except (OSError, subprocess.TimeoutExpired, UnicodeError) as error:
        raise InputError(f"--working-dir {folder}: a git checkout, but git fails there: {error}") from None
