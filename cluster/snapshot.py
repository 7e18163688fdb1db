"""The code a job runs: a zip archive made when the job is submitted, named by its SHA-256.

In a git checkout it holds the tracked files and the new ones that are not ignored, as they are in the folder now.
Elsewhere, e.g. in the working directory of a Ray job, it holds all files. The same files give the same archive.
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

MAX_SNAPSHOT_BYTES = 100 * 2**20  # the limit of Ray's job server
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
SKIPPED_FOLDERS = {"__pycache__", ".venv", ".git"}


def list_files(folder: Path) -> list[str]:
    """Paths, relative to the folder, of the files that a snapshot of it would hold; sorted.

    Raises:
        InputError: no such folder, no files in it, more than MAX_SNAPSHOT_BYTES, or a checkout that git cannot read.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder}: no such folder; allowed: the folder that the command runs in")
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    candidates = _walk(folder) if listed is None else listed.split("\0")
    names = sorted({name for name in candidates if name and (folder / name).is_file()})
    if not names:
        raise InputError(f"--working-dir {folder}: no files there; allowed: the folder that the command runs in")
    sizes = {name: (folder / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_SNAPSHOT_BYTES:
        raise InputError(
            f"--working-dir {folder}: {sum(sizes.values()) >> 20} MiB of files, the largest "
            f"{max(sizes, key=sizes.__getitem__)}; allowed: at most {MAX_SNAPSHOT_BYTES >> 20} MiB (files that "
            ".gitignore names are left out)"
        )
    return names


def create(folder: Path, names: Sequence[str], snapshots: Path) -> str:
    """Archive files of a folder in `snapshots`; returns the archive's SHA-256 in hex, which names it.

    Raises:
        InputError: a file cannot be read, or the archive cannot be written.
    """
    part: Path | None = None
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=snapshots, suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "w+b") as file:
            os.fchmod(descriptor, 0o644)  # the dispatcher may run as another user
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for entry in names:
                    _add(archive, folder / entry, entry)
            file.flush()
            os.fsync(descriptor)
            file.seek(0)
            digest = hashlib.sha256(file.read()).hexdigest()
        durable.replace_durably(part, archive_path(snapshots, digest))
    except (OSError, UnicodeError) as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise InputError(f"--working-dir {folder}: cannot be archived into {snapshots}: {error}") from None
    return digest


def archive_path(snapshots: Path, digest: str) -> Path:
    """The path of the archive with a digest."""
    return snapshots / f"{digest}.zip"


def git_commit(folder: Path) -> str | None:
    """A folder's git commit, with `-dirty` appended if there are uncommitted changes; None outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD") if folder.is_dir() else None
    if not commit:
        return None
    return commit.strip() + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _walk(folder: Path) -> list[str]:
    names: list[str] = []
    for parent, folders, entries in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        names += [str((Path(parent) / name).relative_to(folder)) for name in entries]
    return names


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name, ZIP_EPOCH)
    entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes())


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's output; None outside a checkout, and for `rev-parse` before the first commit."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        if arguments[0] == "rev-parse":  # a checkout without a commit
            return None
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--working-dir {folder}: git fails there: {reason}") from None
    except (OSError, subprocess.TimeoutExpired, UnicodeError) as error:
        raise InputError(f"--working-dir {folder}: a git checkout, but git fails there: {error}") from None
