"""Damaged checkpoints are never believed, and never kept in the place of good ones."""

import json
import shutil

import pytest
import torch

from tests.oracles.checkpoints import flip, handwritten, write
from trainer.checkpoint import reader as checkpoint
from trainer.checkpoint.reader import Checkpoint, best_step, find_latest
from trainer.checkpoint.writer import prune
from trainer.run.manifest import MANIFEST, CheckpointError, complete_steps, step_folder

FAULTS = {
    "altered byte": (lambda f: flip(f / "rank-00001.safetensors"), r"rank-00001\.safetensors: altered"),
    "last byte": (lambda f: flip(f / "rank-00000.safetensors", -1), r"rank-00000\.safetensors: altered"),
    "missing shard": (lambda f: (f / "rank-00001.safetensors").unlink(), r"rank-00001\.safetensors: not readable"),
    "truncated shard": (lambda f: (f / "rank-00000.safetensors").write_bytes(b""), "altered"),
    "truncated manifest": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:40]),
        r"manifest\.json: not readable",
    ),
    "empty manifest": (lambda f: (f / MANIFEST).write_text(""), r"manifest\.json: not readable"),
    "other format": (
        lambda f: (f / MANIFEST).write_text('{"format_version": 1}'),
        "format version 1; this code reads 3",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, fault):
    damage, reason = FAULTS[fault]
    older, newer = write(tmp_path, 5, 2), write(tmp_path, 10, 2)
    assert find_latest(tmp_path).folder == newer
    damage(newer)
    latest = find_latest(tmp_path)
    assert latest.folder == older
    assert len(latest.refused) == 1
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(newer).verify()


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


MANIFEST_FAULTS = {
    "byte that is no UTF-8": lambda f: flip_high_bit(f / MANIFEST),
    "not an object": lambda f: (f / MANIFEST).write_text("[]"),
    "no step": lambda f: (f / MANIFEST).write_text('{"format_version": 3}'),
    "another step than its folder": lambda f: edit(f, step=99),
    "no files": lambda f: edit(f, files={}),
}


def flip_high_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_a_damaged_manifest_is_passed_over_for_the_one_before(tmp_path, fault):
    older, newer = write(tmp_path, 5, 2), write(tmp_path, 10, 2)
    MANIFEST_FAULTS[fault](newer)
    assert find_latest(tmp_path).folder == older


def test_without_a_manifest_a_folder_is_no_checkpoint(tmp_path):
    older, newer = write(tmp_path, 5, 2), write(tmp_path, 10, 2)
    (newer / MANIFEST).unlink()
    assert find_latest(tmp_path) == checkpoint.LatestCheckpoint(older, {})
    with pytest.raises(CheckpointError, match="not readable"):
        Checkpoint(newer)


@pytest.mark.parametrize("exists", [True, False])
def test_where_there_is_none_none_is_found(tmp_path, exists):
    assert find_latest(tmp_path if exists else tmp_path / "nowhere") == checkpoint.LatestCheckpoint(None, {})


def test_where_all_are_damaged_all_reasons_are_told(tmp_path):
    for step in (5, 10):
        flip(write(tmp_path, step, 1) / "rank-00000.safetensors")
    latest = find_latest(tmp_path)
    assert latest.folder is None
    assert [folder.name for folder in latest.refused] == ["step-00000010", "step-00000005"]
    assert all(folder.name in str(reason) for folder, reason in latest.refused.items())


def test_a_copy_with_another_name_is_no_step(tmp_path):
    folder = write(tmp_path, 5, 1)
    shutil.copytree(folder, tmp_path / "step-00000005-backup")
    assert complete_steps(tmp_path) == [5]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_prune_keeps_the_newest_and_never_an_unfinished_one_in_their_place(tmp_path, keep):
    steps = [2, 4, 9, 10, 100]
    for step in steps:
        handwritten(step_folder(tmp_path, step), {"r.safetensors": {"param|w|0": torch.ones(1)}}, {"w": [1]}, step)
    unfinished = step_folder(tmp_path, 200)
    unfinished.mkdir()
    prune(tmp_path, keep)
    assert complete_steps(tmp_path) == steps[-keep:]
    assert unfinished.is_dir()
    assert len(list(tmp_path.iterdir())) == keep + 1  # and the unfinished one


def test_prune_keeps_the_best_beside_the_newest(tmp_path):
    for step, loss in {1: 0.9, 2: 0.1, 3: 0.5, 4: None, 5: 0.7}.items():
        write(tmp_path, step, 1, loss=loss)
    prune(tmp_path, 2)
    assert complete_steps(tmp_path) == [2, 4, 5]
    assert best_step(tmp_path, complete_steps(tmp_path)) == 2
    edit(step_folder(tmp_path, 2), loss=0.0)  # altered: no longer to be believed
    assert best_step(tmp_path, complete_steps(tmp_path)) == 5


def test_prune_takes_the_manifest_first(tmp_path, monkeypatch):
    """A prune that dies half way leaves an incomplete folder, not a broken checkpoint."""
    for step in (1, 2):
        write(tmp_path, step, 1)
    monkeypatch.setattr("trainer.checkpoint.writer.shutil.rmtree", lambda *_, **__: None)
    prune(tmp_path, 1)
    assert step_folder(tmp_path, 1).is_dir()
    assert complete_steps(tmp_path) == [2]
