"""The code a job runs: an archive taken when the job is submitted, named by its SHA-256.

In a git checkout it holds what git knows and what is new and not ignored, as it lies in the folder now. Elsewhere, such
as in the working directory of a submitted job, it holds all files. The same files give the same archive.
"""

import hashlib
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from cluster.errors import InputError

MAX_BYTES = 200 * 2**20
EPOCH = (1980, 1, 1, 0, 0, 0)
SKIPPED = {"__pycache__", ".venv", ".git"}


def take(folder: Path, snapshots: Path) -> str:
    """Archive a folder into `snapshots`; returns the archive's SHA-256, which is its name.

    Raises:
        InputError: no such folder, nothing in it, or more than MAX_BYTES.
    """
    files = _files(folder)
    if not files:
        raise InputError(f"--working-dir {folder}: no files there; allowed: the folder that the command runs in")
    size = sum((folder / name).stat().st_size for name in files)
    if size > MAX_BYTES:
        largest = max(files, key=lambda name: (folder / name).stat().st_size)
        raise InputError(
            f"--working-dir {folder}: {size >> 20} MiB of files, the largest {largest}; allowed: at most "
            f"{MAX_BYTES >> 20} MiB (git leaves out what .gitignore names)"
        )
    snapshots.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=snapshots, suffix=".part") as part:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in files:
                _add(archive, folder / name, name)
        part.flush()
        os.fsync(part.fileno())
        digest = hashlib.sha256(Path(part.name).read_bytes()).hexdigest()
        if not path(snapshots, digest).exists():
            os.link(part.name, path(snapshots, digest))
    return digest


def path(snapshots: Path, digest: str) -> Path:
    """Where the archive of a digest is."""
    return snapshots / f"{digest}.zip"


def git_commit(folder: Path) -> str | None:
    """The commit a folder is at, `-dirty` appended with uncommitted changes; None outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit.strip() + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder}: no such folder; allowed: the folder that the command runs in")
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = listed.split("\0") if listed else _walk(folder)
    return sorted({name for name in names if name and (folder / name).is_file()})


def _walk(folder: Path) -> list[str]:
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED]
        names += [str((Path(parent) / name).relative_to(folder)) for name in files]
    return names


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes())


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
