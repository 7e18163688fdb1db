"""A power cut: what a disk keeps of a sequence of writes, of which only what was fsynced is sure.

The content of a file is kept as of its last fsync, the names in a folder as of theirs. Of everything later a disk may
keep anything; two extremes are rebuilt: nothing of it, and all names (as ext4's journal does) without the content.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]
"""Path below the folder -> content of a file; None for a folder."""


@dataclass
class Cut:
    """What may be left if the power is cut here.

    Attributes:
        after: the operation before the cut.
        promised: what the code under test had promised by then.
        synced: what is left if nothing is kept but what was fsynced.
        named: what is left if all names are kept as well, and of content only what was fsynced.
    """

    after: str
    promised: Any
    synced: Tree
    named: Tree


@dataclass
class Disk:
    """Records the operations below a folder; `with disk.recording():` around the code under test.

    Attributes:
        root: the folder; what is in it before is on the disk.
        promised: set by the test, and kept with every later cut.
        cuts: one for each operation that changes what a disk holds.
    """

    root: Path
    promised: Any = None
    cuts: list[Cut] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take in what is there."""
        self._ids: dict[int, int] = {}
        self._fresh, self._lock = count(), threading.RLock()
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        for folder, _, files in os.walk(self.root):
            self._sync_names(Path(folder))
            for name in files:
                self._content[self._id(Path(folder, name))] = Path(folder, name).read_bytes()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what this process does to files; threads may do it."""
        real = {
            name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")
        }

        def fsync(descriptor: int) -> None:
            with self._lock:
                real["fsync"](descriptor)
                self._on_fsync(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def replace(source: Any, target: Any, **options: Any) -> None:
            with self._lock:
                self._forget(target, None)
                real["replace"](source, target, **options)
                self._cut(f"replace {Path(target).name}", Path(target))

        def forgetting(name: str) -> Any:
            def action(path: Any, *, dir_fd: int | None = None) -> None:
                with self._lock:
                    self._forget(path, dir_fd)
                    real[name](path, dir_fd=dir_fd)
                    self._cut(f"{name} {path}", self.root)

            return action

        def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
            with self._lock:
                real["mkdir"](path, *arguments, **options)
                self._cut(f"mkdir {Path(path).name}", Path(path))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            patch.setattr(os, "mkdir", mkdir)
            for name in ("replace", "rename"):
                patch.setattr(os, name, replace)
            for name in ("unlink", "remove", "rmdir"):
                patch.setattr(os, name, forgetting(name))
            yield

    def _id(self, path: Path) -> int:
        """Identity of a file or folder; an inode that is used again gets another."""
        inode = path.stat().st_ino
        return self._ids.setdefault(inode, next(self._fresh))

    def _forget(self, path: Any, dir_fd: int | None) -> None:
        with suppress(FileNotFoundError):
            self._ids.pop(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino, None)

    def _sync_names(self, folder: Path) -> None:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        self._names[self._id(folder)] = {entry.name: (self._id(Path(entry.path)), entry.is_dir()) for entry in entries}

    def _on_fsync(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self._sync_names(path)
        else:
            self._content[self._id(path)] = path.read_bytes()
        self._cut(f"fsync {path.name}", path)

    def _cut(self, after: str, path: Path) -> None:
        if path.is_relative_to(self.root):
            synced: Tree = {}
            self._walk_synced(self._id(self.root), "", synced)
            named = {
                str(each.relative_to(self.root)): None if each.is_dir() else self._content.get(self._id(each), b"")
                for each in sorted(self.root.rglob("*"))
            }
            self.cuts.append(Cut(after, self.promised, synced, named))

    def _walk_synced(self, folder: int, prefix: str, tree: Tree) -> None:
        for name, (each, is_folder) in self._names.get(folder, {}).items():
            tree[f"{prefix}{name}"] = None if is_folder else self._content.get(each, b"")
            self._walk_synced(each, f"{prefix}{name}/", tree)


def rebuild(tree: Tree, folder: Path) -> Path:
    """Write what is left of a disk into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in sorted(tree.items()):
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder
