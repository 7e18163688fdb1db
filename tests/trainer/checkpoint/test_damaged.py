"""Damaged checkpoints: set aside and named, and training never begins at step 0 in silence."""

import json

import pytest

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
