"""The code a job runs: a zip archive made when the job is submitted, named by its SHA-256.

In a git checkout it holds the tracked files and the new ones that are not ignored, as they are in the folder now.
Elsewhere, e.g. in the working directory of a Ray job, it holds all files. What is usually a secret is left out, and so
is what `.dualviewignore` names. The same files give the same archive.
"""

import os
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

from pathspec import GitIgnoreSpec

from cluster.errors import FilesUnavailableError, InputError
from cluster.files import Files, Folder, digest as digest_of

MAX_SNAPSHOT_BYTES = 100 * 2**20  # the limit of Ray's job server
MAX_NAMED = 5  # files of a folder that is too large
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
IGNORE = ".dualviewignore"
# as .gitignore is written; what is usually a secret, or has one in it
SECRETS = (
    ".env", ".env.*", "!.env.example", "!.env.sample", "!.env.template", ".envrc", "*.env", "*.env~", ".netrc",
    "_netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", ".git-credentials", ".my.cnf", ".s3cfg", ".boto",
    ".databrickscfg", "rclone.conf", "kubeconfig", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx",
    "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "id_*_sk", "!id_*.pub", "!id_*.py", "credentials.json",
    "client_secret*.json", "service-account*.json", "service_account*.json", "kaggle.json", "secrets.y*ml",
    "secrets.json", "secrets.toml", "*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*", ".aws/", ".azure/",
    ".ssh/", ".gnupg/", ".kube/", ".docker/", "**/.config/gcloud/", "**/.config/gh/", ".huggingface/",
    "**/.cache/huggingface/", "**/.mlflow/credentials", ".ray/", ".git/", "ray_token", "ray_token.*",
    # the queue's: keys of attempts, and copies of secrets, in folders whose names are ordinary ones for code
    "**/tokens/dualview-*", f"**/secrets/{32 * '[0-9a-f]'}/",
)  # fmt: skip
FOLDER = "snapshots"  # of the queue's files
SKIPPED_FOLDERS = {"__pycache__", ".venv", ".git"}


@dataclass(frozen=True)
class Contents:
    """What a snapshot of a folder would hold.

    Attributes:
        names: paths of the files, relative to the folder; sorted.
        left_out: paths of what is no file, and of secrets, and what they are; with no words, what IGNORE names.
        untracked: those of the files that git does not know yet.
    """

    names: list[str]
    left_out: dict[str, str]
    untracked: list[str]


def list_files(folder: Path) -> Contents:
    """The files that a snapshot of a folder would hold, and what it would leave out beside what git ignores.

    Raises:
        InputError: no such folder, no files in it, a link out of it, more than MAX_SNAPSHOT_BYTES, or a checkout that
            git cannot read.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder}: no such folder; allowed: the folder that the command runs in")
    tracked = _git(folder, "ls-files", "-z", "--cached")
    others = _git(folder, "ls-files", "-z", "--others", "--exclude-standard")
    candidates = _walk(folder) if tracked is None else [*tracked.split("\0"), *(others or "").split("\0")]
    found = sorted({name.rstrip("/") for name in candidates if name})
    left_out = _ignored(folder, found)
    left_out |= {
        name: problem for name in found if name not in left_out and (problem := _problem(folder, name)) is not None
    }
    names = [name for name in found if name not in left_out and (folder / name).is_file()]
    if not names:
        raise InputError(f"--working-dir {folder}: no files there; allowed: the folder that the command runs in")
    sizes = {name: (folder / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_SNAPSHOT_BYTES:
        largest = [f"{name} ({sizes[name] >> 20} MiB)" for name in nlargest(MAX_NAMED, sizes, key=sizes.__getitem__)]
        raise InputError(
            f"--working-dir {folder}: {sum(sizes.values()) >> 20} MiB of files, the largest {', '.join(largest)}; "
            f"allowed: at most {MAX_SNAPSHOT_BYTES >> 20} MiB (files that "
            f".gitignore and {IGNORE} name are left out)"
        )
    untracked = sorted({*(others or "").split("\0")} & {*names})
    return Contents(names, left_out, untracked)


def _ignored(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The names that are left out: of secrets, with words for people; and those that IGNORE has, without."""
    file = folder / IGNORE
    own = file.read_text(errors="replace").splitlines() if file.is_file() else []
    ignored, secret = GitIgnoreSpec.from_lines([*SECRETS, *own]), GitIgnoreSpec.from_lines(SECRETS)
    told = "a secret, by its name; !{} in {} takes it along"
    found: dict[str, str] = {}
    for name in names:
        if any(ignored.match_file(each) for each in _names_of(folder, name)):
            is_secret = any(secret.match_file(each) for each in _names_of(folder, name))
            found[name] = told.format(name, IGNORE) if is_secret else ""
    return found


def _names_of(folder: Path, name: str) -> list[str]:
    """A file's name, as it is and in small letters; and where a link leads within the folder, the target's."""
    path, names = folder / name, [name]
    if path.is_symlink() and path.resolve().is_relative_to(folder.resolve()):
        names.append(str(path.resolve().relative_to(folder.resolve())))
    return [*names, *(each.lower() for each in names)]


def _problem(folder: Path, name: str) -> str | None:
    """What is listed and is no file of the folder; None for a file.

    Raises:
        InputError: a link to a file outside of the folder, whose content would go to everybody who can read the job's.
    """
    path = folder / name
    if path.is_symlink():
        if not path.exists():
            return "a broken link"
        if path.is_dir():
            return "a link to a folder"
    elif path.is_dir():
        return "a checkout of its own"
    if path.is_file() and not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"--working-dir {folder}: {name} is a link to {path.resolve()}; allowed: files of the folder, or {name} in "
            f"{IGNORE}"
        )
    return None


def create(folder: Path, names: Sequence[str], target: Path) -> str:
    """Archive files of a folder in another folder; returns the archive's SHA-256 in hex, which names it.

    Raises:
        InputError: a file cannot be read, or the archive cannot be written.
    """
    part = target / "snapshot.part"
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in names:
                _add(archive, folder / entry, entry)
        if part.stat().st_size > MAX_SNAPSHOT_BYTES:
            raise OSError(f"more than {MAX_SNAPSHOT_BYTES >> 20} MiB")
        digest = digest_of(part)
        part.replace(archive_path(target, digest))
    except (OSError, UnicodeError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"--working-dir {folder}: cannot be archived into {target}: {error}") from None
    return digest


def unpack(archive: Path, place: Path) -> None:
    """Unpack an archive into a new folder, as the job will find it."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(place)


def keep(archive: Path, files: Files) -> None:
    """Have an archive among the snapshots.

    Raises:
        FilesUnavailableError: it cannot be written there now.
    """
    try:
        files.write(name_of(archive.stem), Folder(archive.parent).read(archive.name))
    except FilesUnavailableError as error:
        raise FilesUnavailableError(f"the snapshot cannot be written: {error}") from None


def name_of(digest: str) -> str:
    """The name of the archive with a digest, among the queue's files."""
    return f"{FOLDER}/{digest}.zip"


def archive_path(folder: Path, digest: str) -> Path:
    """The path of the archive with a digest, before it is among the queue's files."""
    return folder / f"{digest}.zip"


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
