"""The files of a folder: each once, hidden and broken ones by name, whatever links and names there are."""

import os

import pytest

from trainer.config.data import DataConfig
from trainer.data.files import read_partition, scan_files
from trainer.data.listing import list_source, printable
from trainer.data.store import Store


def listed(folder):
    found = list_source(Store(str(folder)))
    return [file.path for file in found.files], dict(found.left_out)


@pytest.fixture
def folder(tmp_path):
    """A source of two images in two folders."""
    for name in ("source/a/1.png", "source/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "source"


@pytest.mark.parametrize("target", [".", "..", "../..", "../b"])
def test_a_link_to_what_is_read_already_is_left_out(folder, target):
    (folder / "a/link").symlink_to(target)
    files, left_out = listed(folder)
    assert files == ["a/1.png", "b/2.png"]
    assert left_out["a/link"] == f"a link to {(folder / 'a' / target).resolve()}, which is read already"


def test_links_to_elsewhere_are_followed_once(folder, tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/3.png").write_bytes(b"x")
    (tmp_path / "elsewhere/back").symlink_to(folder)
    for name in ("c", "d"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (folder / "a/file.png").symlink_to(tmp_path / "elsewhere/deep/3.png")
    files, left_out = listed(folder)
    assert files == ["a/1.png", "a/file.png", "b/2.png", "c/deep/3.png"]
    assert sorted(left_out) == ["c/back", "d"]


def test_a_link_to_a_parent_of_what_a_link_has_shown_shows_the_rest(folder, tmp_path):
    for name in ("elsewhere/x/1.png", "elsewhere/y/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (folder / "c").symlink_to(tmp_path / "elsewhere/x")
    (folder / "d").symlink_to(tmp_path / "elsewhere")
    assert listed(folder)[0] == ["a/1.png", "b/2.png", "c/1.png", "d/y/2.png"]


def test_a_link_to_itself_is_a_broken_one(folder):
    (folder / "a/loop.png").symlink_to("loop.png")
    (folder / ".loop").symlink_to(".loop")
    files, left_out = listed(folder)
    assert files == ["a/1.png", "a/loop.png", "b/2.png"]
    assert left_out == {".loop": "hidden"}


def test_hidden_and_odd_files_are_left_out_by_name(folder):
    for name in (".DS_Store", "a/._1.png", ".cache/3.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    files, left_out = listed(folder)
    assert files == ["a/1.png", "b/2.png"]
    assert left_out == {
        ".DS_Store": "hidden",
        "a/._1.png": "hidden",
        ".cache/3.png": "hidden",
        "pipe.png": "neither a file nor a folder",
    }


def test_a_broken_link_is_an_image_that_cannot_be_read(folder):
    (folder / "a/gone.png").symlink_to("/no/such/file.png")
    source = scan_files(DataConfig(source=str(folder)))
    (rows,) = [row for rows in read_partition(source, source.partitions[0]) for row in rows if "gone" in row.path]
    assert (rows.problem, rows.is_image) == ("cannot be read: No such file or directory", True)


def test_names_that_are_not_utf8_are_read_and_printed(folder):
    with open(os.fsencode(folder) + b"/a/caf\xe9\x1b[31m.png", "wb") as file:
        file.write(b"image")
    source = scan_files(DataConfig(source=str(folder)))
    rows = [row for rows in read_partition(source, source.partitions[0]) for row in rows]
    assert [(row.path, row.data) for row in rows if "caf" in row.path] == [("a/caf\\xe9\\x1b[31m.png", b"image")]


def test_what_is_printed_has_no_control_characters():
    assert printable("a\x1b]0;\x07\n\u202eé") == "a\\x1b]0;\\x07\\n\\u202eé"
