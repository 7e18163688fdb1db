"""A file is there whole or not at all: what reaches the disk, in which order, and what an error leaves."""

import os
from pathlib import Path

import pytest

from diffusion import durable


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What was asked of the disk, in order."""
    made, fsync, replace = list[str](), os.fsync, os.replace

    def synced(descriptor):
        made.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(source, target):
        made.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return made


def test_content_reaches_the_disk_before_its_name_and_the_name_before_anything_else(tmp_path, calls):
    durable.write_text(tmp_path / "a.json", "{}")
    assert [call.split()[0] for call in calls] == ["sync", "rename", "sync"]
    assert calls[0].startswith(f"sync {durable.PREFIX}")
    assert calls[1:] == ["rename a.json", f"sync {tmp_path.name}"]
    assert (tmp_path / "a.json").read_text() == "{}"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    durable.write_bytes(tmp_path / "a", b"old")

    def broken():
        with durable.replacing(tmp_path / "a") as path:
            path.write_bytes(b"ne")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_two_writers_do_not_meet(tmp_path):
    with durable.replacing(tmp_path / "a") as first, durable.replacing(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # which was closed last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
