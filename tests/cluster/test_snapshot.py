"""Snapshots: the files as they lie there, the same archive for the same files."""

import subprocess
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.errors import InputError
from cluster.files import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    (root / "package" / "__pycache__").mkdir(parents=True)
    (root / "package" / "main.py").write_text("print('hello')\n")
    (root / "package" / "__pycache__" / "main.pyc").write_bytes(b"x")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "large.npy").write_bytes(b"x" * 1000)
    return root


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def take(folder: Path, store: Path) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        digest = snapshot.create(folder, snapshot.list_files(folder).names, Path(scratch))
        snapshot.keep(snapshot.archive_path(Path(scratch), digest), Folder(store))
    return digest


def names(folder: Path, store: Path) -> set[str]:
    with zipfile.ZipFile(store / snapshot.name_of(take(folder, store))) as archive:
        return set(archive.namelist())


def test_without_git_all_files_but_caches(folder: Path, tmp_path: Path):
    assert names(folder, tmp_path / "store") == {"package/main.py", "run.sh", "large.npy"}
    assert snapshot.git_commit(folder) is None


def test_with_git_what_is_new_goes_along_and_what_is_ignored_or_gone_does_not(folder: Path, tmp_path: Path):
    (folder / ".gitignore").write_text("*.npy\n__pycache__\n")
    git(folder, "init")
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "first")
    commit = snapshot.git_commit(folder)
    assert commit is not None
    assert len(commit) == 40
    (folder / "run.sh").unlink()
    (folder / "new.py").write_text("new\n")
    assert names(folder, tmp_path / "store") == {".gitignore", "package/main.py", "new.py"}
    assert snapshot.git_commit(folder) == f"{commit}-dirty"


def test_the_same_files_are_the_same_archive_and_a_change_another(folder: Path, tmp_path: Path):
    store = tmp_path / "store"
    first = take(folder, store)
    (folder / "run.sh").touch()
    assert take(folder, store) == first
    (folder / "run.sh").write_text("#!/bin/bash\n")
    assert take(folder, store) != first
    assert len(list((store / "snapshots").iterdir())) == 2


def test_scripts_stay_executable(folder: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "s" / snapshot.name_of(take(folder, tmp_path / "s"))) as archive:
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755


def test_the_same_code_from_many_places_at_once(folder: Path, tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: take(folder, tmp_path / "s"), range(24)))
    assert [file.name for file in (tmp_path / "s" / "snapshots").iterdir()] == [f"{digest}.zip" for digest in digests]


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no such folder"):
        snapshot.list_files(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files there"):
        snapshot.list_files(tmp_path / "empty")
    (tmp_path / "s").mkdir()
    with pytest.raises(InputError, match="cannot be archived into"):
        snapshot.create(folder, ["gone.py"], tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []
    monkeypatch.setattr(snapshot, "MAX_SNAPSHOT_BYTES", 500)
    with pytest.raises(InputError, match=r"the largest large\.npy \(0 MiB\), .*; allowed: at most"):
        snapshot.list_files(folder)


def test_what_is_no_file_is_left_out_by_name(folder: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (folder / "data").symlink_to(tmp_path / "data")
    (folder / "gone").symlink_to(tmp_path / "gone")
    (folder / "nested").mkdir()
    (folder / "nested" / "main.py").write_text("nested\n")
    for repository in (folder / "nested", folder):
        git(repository, "init")
    git(folder / "nested", "add", "-A")
    git(folder / "nested", "commit", "-m", "first")
    contents = snapshot.list_files(folder)
    assert contents.left_out == {
        "data": "a link to a folder", "gone": "a broken link", "nested": "a checkout of its own",
    }  # fmt: skip
    assert "run.sh" in contents.names


def test_a_snapshot_is_unpacked_as_it_was(folder: Path, tmp_path: Path):
    archive = tmp_path / "s" / snapshot.name_of(take(folder, tmp_path / "s"))
    snapshot.unpack(archive, tmp_path / "place")
    assert (tmp_path / "place" / "package" / "main.py").read_text() == "print('hello')\n"


def test_a_checkout_that_git_cannot_read_is_not_taken_for_none(folder: Path):
    (folder / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(InputError, match=r"git fails there: .*not a git repository"):
        snapshot.list_files(folder)
