"""Where a queue keeps snapshots and logs: a folder, or a prefix of an S3 bucket.

S3 is configured by the usual environment variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
AWS_REGION.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow.fs  # pyright: ignore[reportMissingTypeStubs]

from cluster import durable
from cluster.errors import FilesUnavailableError, InputError

_ARROW_ERROR: type[Exception] = pyarrow.lib.ArrowException  # pyright: ignore
fs: Any = pyarrow.fs  # pyright: ignore[reportUnknownMemberType]  # it has no types
LOGS = "logs"  # the folder of what attempts that have ended wrote
PART = ".part"  # how the name of what is being written ends
PART_BYTES = 2**20
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 10, 60
KEPT_COPIES = 4
MAX_COPY_BYTES = 2**27  # more than a snapshot has


@dataclass(frozen=True)
class File:
    """A file that is kept.

    Attributes:
        name: its name, e.g. `logs/x.log`.
        size: in bytes.
        modified: when it was written, in seconds since the epoch.
    """

    name: str
    size: int
    modified: float


class Files(Protocol):
    """Files by name, e.g. `logs/x.log`. Writing replaces; what is cut off in the middle leaves nothing.

    Every method raises FilesUnavailableError if the place cannot be read or written now. What is written in a folder is
    for those who may write in the folder itself: its user alone unless a team has opened it.

    Attributes:
        uri: of the place.
    """

    uri: str

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """A file in parts; FileNotFoundError if there is none."""
        ...

    def local(self, name: str) -> Path:
        """A file of this machine with the content of a file; there is none if that is not there."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def list(self, folder: str) -> list[File]:
        """The files in a folder, e.g. `logs`, by name."""
        ...


def open_files(uri: str) -> Files:
    """The place of a URI.

    Raises:
        InputError: it is neither an absolute path nor `s3://bucket/prefix`.
    """
    if re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,62}(/[\w!*'().+=,~ -]+)*/?", uri, re.ASCII):
        return Bucket(uri)
    path = Path(unquote(re.sub(r"^file://(localhost)?(?=/)", "", uri)) if uri.startswith("file://") else uri)
    if not path.is_absolute() or "\0" in uri:
        shown = uri if "@" not in uri else f"{uri.partition(':')[0]}:…"  # the rest may be a password
        raise InputError(f"--files {shown!r}: allowed: an absolute path of a shared folder, or s3://bucket/prefix")
    return Folder(path)


class Folder:
    """A folder."""

    def __init__(self, path: Path) -> None:
        """It need not exist."""
        self.path, self.uri = path, str(path)

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file; its name is on disk when this returns."""
        with _available(self.uri):
            target = self.path / name
            durable.make_folder(target.parent)
            durable.write_parts(target, parts)

    def read(self, name: str) -> Iterator[bytes]:
        """A file in parts."""
        with _available(self.uri), (self.path / name).open("rb") as opened:
            while part := opened.read(PART_BYTES):
                yield part

    def local(self, name: str) -> Path:
        """The file itself."""
        return self.path / name

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        with _available(self.uri):
            return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Remove a file."""
        with _available(self.uri):
            (self.path / name).unlink(missing_ok=True)

    def list(self, folder: str) -> list[File]:
        """The files in a folder; without those that vanish meanwhile."""
        found: list[File] = []
        with _available(self.uri):
            for path in sorted((self.path / folder).glob("*")):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append(File(f"{folder}/{path.name}", status.st_size, status.st_mtime))
        return found


class Bucket:
    """A prefix of an S3 bucket."""

    def __init__(self, uri: str) -> None:
        """Asks nothing of the server yet."""
        self.uri = uri.rstrip("/")
        self._root = self.uri.removeprefix("s3://")
        self._files = _s3()
        self._copies: Folder | None = None

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file under another name, and let the server copy it: Arrow completes what is broken off."""
        part = f"{self._root}/{name}.{uuid.uuid4().hex}{PART}"
        with _available(self.uri), tempfile.TemporaryFile() as whole:
            whole.writelines(parts)
            whole.seek(0)
            try:
                with self._files.open_output_stream(part) as target:
                    shutil.copyfileobj(whole, target, PART_BYTES)
                self._files.copy_file(part, f"{self._root}/{name}")
            finally:
                with suppress(OSError):
                    self._files.delete_file(part)

    def read(self, name: str) -> Iterator[bytes]:
        """A file in parts."""
        with _available(self.uri), self._files.open_input_stream(f"{self._root}/{name}") as opened:
            while part := opened.read(PART_BYTES):
                yield part

    def local(self, name: str) -> Path:
        """A copy, one of the last KEPT_COPIES; a file of one name always has the same content."""
        if self._copies is None:
            self._copies = Folder(Path(tempfile.mkdtemp(prefix="dualview-queue-")))
            weakref.finalize(self, shutil.rmtree, self._copies.uri, ignore_errors=True)
        if not self._copies.exists(name):
            for old in sorted(self._copies.list(str(Path(name).parent)), key=lambda each: each.modified)[:-KEPT_COPIES]:
                self._copies.remove(old.name)
            with suppress(FileNotFoundError):
                self._copies.write(name, _first(self.read(name), MAX_COPY_BYTES))
        return self._copies.local(name)

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        with _available(self.uri):
            return self._files.get_file_info(f"{self._root}/{name}").type == fs.FileType.File

    def remove(self, name: str) -> None:
        """Remove a file."""
        with _available(self.uri), suppress(FileNotFoundError):
            if self.exists(name):
                self._files.delete_file(f"{self._root}/{name}")

    def list(self, folder: str) -> list[File]:
        """The files in a folder."""
        with _available(self.uri):
            infos = self._files.get_file_info(fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        found = [
            File(f"{folder}/{each.base_name}", each.size, each.mtime.timestamp())
            for each in infos
            if each.type == fs.FileType.File
        ]
        return sorted(found, key=lambda each: each.name)


def log_name(submission_id: str) -> str:
    """The name of the output of an attempt that has ended."""
    return f"{LOGS}/{submission_id}.log"


def ends_of(parts: Iterable[bytes], most: int, seconds: float) -> Iterator[bytes]:
    """The first and the last half of so many bytes of what may have no end, and what is left out between them.

    Args:
        parts: what is read.
        most: how many bytes are kept.
        seconds: how long it is read.
    """
    room, held, left_out = most // 2, 0, 0
    last, problems = deque[bytes](), list[Exception]()
    for part in _in_time(parts, seconds, problems):
        yield part[:room]
        rest, room = part[room:], room - len(part[:room])
        if rest:
            last.append(rest)
        held += len(rest)
        while last and held - len(last[0]) >= most // 2:
            left_out += len(last[0])
            held -= len(last.popleft())
    if left_out:
        yield f"\n({left_out / 2**20:.1f} MiB left out)\n".encode()
    yield from last
    for problem in problems:
        raise problem


def _in_time(parts: Iterable[bytes], seconds: float, problems: list[Exception]) -> Iterator[bytes]:
    """What comes in so many seconds, and a note where that is not all; an error is put aside for the end."""
    deadline, late = time.monotonic() + seconds, False
    try:
        for part in parts:
            if late:
                yield f"\n(the rest was not read in {seconds:g} s)\n".encode()
                return
            yield part
            late = time.monotonic() > deadline
    except Exception as error:  # noqa: BLE001 - it is raised once what came before it is kept
        problems.append(error)


def _first(parts: Iterable[bytes], most: int) -> Iterator[bytes]:
    for part in parts:
        if most > 0:
            yield part[:most]
        else:
            break
        most -= len(part)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _s3() -> Any:  # noqa: ANN401
    """The S3 file system that the environment configures."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
    if not endpoint:
        return fs.S3FileSystem(region=region, **timeouts)
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"AWS_ENDPOINT_URL = {endpoint!r}: allowed: http(s)://host[:port]")
    region = region or "us-east-1"
    return fs.S3FileSystem(region=region, endpoint_override=parts.netloc, scheme=parts.scheme, **timeouts)


@contextmanager
def _available(uri: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, _ARROW_ERROR) as error:
        raise FilesUnavailableError(f"{uri}: {' '.join(str(error).split())[:300]}") from error
