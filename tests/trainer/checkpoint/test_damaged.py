"""Damaged checkpoints: set aside and named, and training never begins at step 0 in silence."""

import errno
import json
import os
import re

import pytest

from diffusion.package import file_sha256
from tests.oracles.checkpoints import CONFIG, flip, write
from trainer.checkpoint.damaged import DISCARDED, REFUSED, NoGoodCheckpointError, discard, find_usable
from trainer.checkpoint.reader import find_latest
from trainer.checkpoint.writer import prune
from trainer.errors import InputError
from trainer.run.manifest import MANIFEST, complete_steps, newest_whole, step_folder

SHARD = "rank-00000.safetensors"
DAMAGE = {
    "a flipped bit": lambda folder: flip(folder / SHARD),
    "a cut shard": lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1]),
    "no shard": lambda folder: (folder / SHARD).unlink(),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_text(""),
    "a flipped digit of the method": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace(CONFIG.method_sha256, CONFIG.method_sha256[::-1])
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_gone_on_from(tmp_path, how):
    older, newer = write(tmp_path, 5, 1), write(tmp_path, 10, 1)
    DAMAGE[how](newer)
    assert find_usable(tmp_path).folder == older
    assert complete_steps(tmp_path) == [5]
    assert (tmp_path / REFUSED / newer.name).is_dir()
    assert find_usable(tmp_path).refused == {}


def test_where_none_is_good_nothing_begins_at_step_0(tmp_path):
    for step in (5, 10):
        flip(write(tmp_path, step, 1) / SHARD)
    for reason in ("altered since it was written", "they are in"):  # at first, and when they have been set aside
        with pytest.raises(NoGoodCheckpointError, match=rf"step-00000005, step-00000010, .*{reason}.*--from-scratch"):
            find_usable(tmp_path)
    assert complete_steps(tmp_path) == []


def test_from_scratch_begins_at_step_0_and_stays_begun(tmp_path):
    flip(write(tmp_path, 5, 1) / SHARD)
    discard(tmp_path)
    assert find_usable(tmp_path).step == 0
    assert (
        find_usable(tmp_path).step == 0
    )  # the same command without the flag, after a stop before the first checkpoint
    assert (tmp_path / DISCARDED / "step-00000005").is_dir()
    write(tmp_path, 5, 1)
    assert find_usable(tmp_path).step == 5


def test_from_scratch_takes_no_good_one_away(tmp_path):
    write(tmp_path, 5, 1)
    flip(write(tmp_path, 10, 1) / SHARD)
    with pytest.raises(InputError, match=r"--from-scratch: .*step-00000005 is good; allowed: without it"):
        discard(tmp_path)


def test_from_scratch_without_any_is_a_beginning_like_any_other(tmp_path):
    discard(tmp_path / "nothing")
    assert find_usable(tmp_path / "nothing").step == 0


def test_one_of_another_version_is_not_damaged(tmp_path):
    older, newer = write(tmp_path, 5, 1), write(tmp_path, 10, 1)
    values = json.loads((newer / MANIFEST).read_text())
    (newer / MANIFEST).write_text(json.dumps({**values, "format_version": 4}))
    assert find_usable(tmp_path).folder == older
    assert newer.is_dir()


def test_damaged_ones_do_not_have_good_ones_pruned(tmp_path):
    """Two newer ones whose shards were cut: the older good ones are what is left to go on from."""
    for step in (1, 2, 3, 4):
        write(tmp_path, step, 1)
    for step in (3, 4):
        DAMAGE["a cut shard"](step_folder(tmp_path, step))
    assert newest_whole(tmp_path) == 2
    prune(tmp_path, 2)
    assert complete_steps(tmp_path) == [1, 2, 3, 4]
    assert find_latest(tmp_path).step == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("what", ["manifest", "shard"])
def test_an_error_of_reading_that_may_pass_moves_nothing(tmp_path, monkeypatch, number, what):
    """The storage says nothing about the checkpoint; what it holds stays where it is."""
    write(tmp_path, 5, 1)

    def failing(*_):
        raise OSError(number, os.strerror(number))

    if what == "manifest":
        monkeypatch.setattr("trainer.files.read_bounded", failing)
    else:
        monkeypatch.setattr("trainer.checkpoint.reader.file_sha256", failing)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        find_usable(tmp_path)
    assert complete_steps(tmp_path) == [5]


def test_a_bad_sector_is_damage(tmp_path, monkeypatch):
    older, newer = write(tmp_path, 5, 1), write(tmp_path, 10, 1)
    real = file_sha256

    def read(path):
        if path.parent == newer:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr("trainer.checkpoint.reader.file_sha256", read)
    assert find_usable(tmp_path).folder == older
    assert complete_steps(tmp_path) == [5]


def test_from_scratch_discards_those_of_another_version_too(tmp_path):
    folder = write(tmp_path, 5, 1)
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, "format_version": 2}))
    with pytest.raises(NoGoodCheckpointError, match="format version 2; this code reads"):
        find_usable(tmp_path)
    discard(tmp_path)
    assert find_usable(tmp_path).step == 0


def test_what_was_set_aside_before_is_kept(tmp_path):
    for _ in range(2):
        flip(write(tmp_path, 5, 1) / SHARD)
        with pytest.raises(NoGoodCheckpointError):
            find_usable(tmp_path)
    assert sorted(path.name for path in (tmp_path / REFUSED).iterdir()) == ["step-00000005", "step-00000005-1"]
