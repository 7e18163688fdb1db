"""The files of a source: which there are, and which are left out before anything is read, each with its reason."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs

from trainer.data.store import Store

HIDDEN = "hidden"
LINK = "a link to "


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: relative to the source; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`.
        size: in bytes.
        mtime_ns: modification time.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        files: sorted by the components of their paths.
        left_out: printable path of each file or link that is not looked at, and why.
        is_file: whether the source is a single file, which is listed under its own name.
    """

    files: tuple[File, ...]
    left_out: tuple[tuple[str, str], ...]
    is_file: bool = False


def printable(path: str) -> str:
    r"""A path as it can be printed and stored: bytes that are not UTF-8 and control characters as \xNN."""
    text = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def list_source(store: Store) -> Listing:
    """List a source.

    Hidden files and folders are left out. Links to files are followed, and links to folders elsewhere, each folder
    once; not those to a folder of the source itself, whose images would be there twice.

    Raises:
        OSError: a folder cannot be read.
    """
    own = store.files.get_file_info(store.root)
    if own.type == fs.FileType.File:
        return Listing((File(own.base_name, own.size or 0, own.mtime_ns or 0),), (), is_file=True)
    left_out: list[tuple[str, str]] = []
    if store.local:
        found = list(_walk(Path(store.root), left_out))
    else:
        found = [File(path, info.size or 0, info.mtime_ns or 0) for path, info in store.listing()]
    files: list[File] = []
    for file in found:
        if is_hidden(file.path):
            left_out.append((printable(file.path), HIDDEN))
        else:
            files.append(file)
    return Listing(tuple(sorted(files, key=lambda file: PurePosixPath(file.path).parts)), tuple(sorted(left_out)))


def _walk(top: Path, left_out: list[tuple[str, str]]) -> Iterator[File]:
    """All files below a folder, following links; what cannot be followed is added to `left_out`."""
    visited, above = set[Path](), set(top.resolve().parents)
    links = [("", top)]
    while links:  # after all real folders, so that a folder counts under its own name
        name, link = links.pop(0)
        target = link.resolve()
        if target in visited or target in above:
            left_out.append((printable(name.rstrip("/")), f"{LINK}{printable(str(target))}, which is read already"))
            continue
        pending = [(name, link)]
        while pending:
            prefix, folder = pending.pop()
            if folder.resolve() in visited:  # by a link to a folder of this one
                continue
            visited.add(folder.resolve())
            for entry in _entries(prefix, folder, left_out):
                path = prefix + entry.name
                if _is_folder(entry):
                    (links if entry.is_symlink() else pending).append((f"{path}/", Path(entry.path)))
                elif (file := _file(path, entry)) is not None:
                    yield file
                else:
                    left_out.append((printable(path), "neither a file nor a folder"))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(path: str, entry: "os.DirEntry[str]") -> File | None:
    """A file, or a broken link, which cannot be read and says so then; None for anything else."""
    try:
        if entry.is_file():
            state = entry.stat()
            return File(path, state.st_size, state.st_mtime_ns)
    except OSError:
        pass
    return File(path, 0, 0) if entry.is_symlink() and not os.path.exists(entry.path) else None  # or it is a device


def _entries(prefix: str, folder: Path, left_out: list[tuple[str, str]]) -> list["os.DirEntry[str]"]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        if not is_hidden(prefix):
            raise
        left_out.append((printable(prefix), HIDDEN))
        return []


def is_hidden(path: str) -> bool:
    """Whether a file or one of its folders is hidden: begins with a full stop."""
    return any(part.startswith(".") for part in path.split("/"))
