"""One interface to a local folder or an S3 prefix. Files are written atomically.

S3 is configured by the usual environment variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
AWS_REGION.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from diffusion import durable
from diffusion.bounded import check_bytes, read_bounded
from trainer.errors import InputError

COPY_BUFFER_BYTES = 8 * 2**20
MAX_READ_BYTES = 2**30  # of a file that is read at once: an image, a table of labels or a manifest


def is_s3(url: str) -> bool:
    """Whether a source or a destination is on S3."""
    return url.startswith("s3://")


def s3() -> fs.S3FileSystem:
    """The S3 file system that the environment configures.

    Raises:
        InputError: AWS_ENDPOINT_URL is not a URL.
    """
    settings: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"AWS_ENDPOINT_URL = {endpoint!r}: allowed: http(s)://host[:port]")
        settings = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        region = region or "us-east-1"
    return fs.S3FileSystem(region=region, connect_timeout=10, request_timeout=60, **settings)


class Store:
    """Files below one folder or prefix.

    Attributes:
        url: of the folder or prefix.
        local: whether it is a local folder.
        root: path of the folder or prefix in `files`.
        files: the Arrow file system.
    """

    def __init__(self, url: str) -> None:
        """Refer to a folder or prefix; nothing is accessed or created."""
        self.local = not is_s3(url)
        self.root = str(Path(url).absolute()) if self.local else url.removeprefix("s3://").strip("/")
        self.url = self.root if self.local else f"s3://{self.root}"
        self.files: fs.FileSystem = fs.LocalFileSystem() if self.local else s3()

    def path(self, name: str) -> str:
        """A file's path in the file system; "" is the root itself."""
        return str(PurePosixPath(self.root, name)) if name else self.root

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is no such file."""
        info = self.files.get_file_info(self.path(name))
        return info.size if info.type == fs.FileType.File else None

    def read(self, name: str, most: int = MAX_READ_BYTES) -> bytes:
        """Content of a file.

        Raises:
            OSError: it cannot be read.
            ValueError: it has more than `most` bytes.
        """
        if self.local:  # Arrow takes only names that are UTF-8
            return read_bounded(Path(self.path(name)), most)
        with self.files.open_input_file(self.path(name)) as file:
            check_bytes(file.size(), most)
            return file.read()

    def beginning(self, name: str, size: int) -> bytes:
        """The first bytes of a file, as many as it has."""
        if self.local:
            with Path(self.path(name)).open("rb") as file:
                return file.read(size)
        with self.files.open_input_file(self.path(name)) as file:
            return file.read(size)

    def listing(self, name: str = "") -> list[tuple[str, fs.FileInfo]]:
        """All files below a folder: path relative to it, and file info, sorted by the components of the path."""
        top = self.path(name)
        selector = fs.FileSelector(top, allow_not_found=True, recursive=True)
        entries = [
            (str(PurePosixPath(info.path).relative_to(top)), info)
            for info in self.files.get_file_info(selector)
            if info.type == fs.FileType.File
        ]
        return sorted(entries, key=lambda pair: PurePosixPath(pair[0]).parts)

    def names(self) -> list[str]:
        """Sorted names of the files and folders directly in the folder."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        return sorted(info.base_name for info in self.files.get_file_info(selector))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; when the context ends, the complete file appears under its name."""
        if self.local:
            target = Path(self.path(name))
            durable.make_folder(target.parent)
            with durable.replacing(target) as path:
                yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            content = Path(folder) / "content"
            yield content
            with content.open("rb") as file, self.files.open_output_stream(self.path(name)) as out:
                shutil.copyfileobj(file, out, COPY_BUFFER_BYTES)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self.writing(name) as path:
            path.write_bytes(content)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A local path to read a file from: the file itself, or a copy that exists while the context lasts."""
        if self.local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            self.download(name, copy)
            yield copy

    def download(self, name: str, target: Path) -> None:
        """Copy a file to a local path."""
        with self.files.open_input_stream(self.path(name)) as file, target.open("wb") as out:
            shutil.copyfileobj(file, out, COPY_BUFFER_BYTES)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.files.delete_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all its content, if it exists."""
        if self.local:
            shutil.rmtree(self.path(name), ignore_errors=True)
            return
        for below, _ in self.listing(name):
            self.remove(f"{name}/{below}")
