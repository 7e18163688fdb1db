"""Checkpoints: written at one number of ranks, read at any other, and superseded attempts shut out."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save

from diffusion.package import file_sha256
from tests.oracles.checkpoints import CONFIG, KINDS, PARAMETERS, handwritten, write
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.checkpoint.shard import write_shard
from trainer.config.run_config import RunConfig
from trainer.run.attempt import SupersededError, begin_attempt
from trainer.run.manifest import MANIFEST, CheckpointError, complete_steps, step_folder


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_parameter_and_moment_is_read_back_whole(tmp_path, world):
    stored = Checkpoint(write(tmp_path, 12, world))
    stored.verify()
    assert stored.step == 12
    assert stored.shapes == {name: tuple(p.shape) for name, p in PARAMETERS.items()}
    for kind, factor in KINDS.items():
        tensors = stored.tensors(kind)
        assert list(tensors) == sorted(PARAMETERS)
        for name, parameter in PARAMETERS.items():
            assert torch.equal(tensors[name], parameter * factor)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The same state, checkpointed by 1, 2 and 3 ranks."""
    return [Checkpoint(write(tmp_path_factory.mktemp(f"world{world}"), 1, world)) for world in (1, 2, 3)]


@given(st.sampled_from(sorted(PARAMETERS)), st.sampled_from(sorted(KINDS)), st.data())
@settings(deadline=None, max_examples=60)
def test_any_slice_is_read_the_same_from_any_world(worlds, name, kind, data):
    flat = PARAMETERS[name].flatten() * KINDS[kind]
    offset = data.draw(st.integers(0, len(flat)))
    numel = data.draw(st.integers(0, len(flat) - offset))
    for stored in worlds:
        assert torch.equal(stored.read(kind, name, offset, numel), flat[offset : offset + numel])


@pytest.mark.parametrize("cuts", [[0, 10], [0, 4, 10], [0, 1, 9, 10]], ids=["world-1", "world-2", "world-3"])
def test_handwritten_fragments_are_joined_by_their_offsets(tmp_path, cuts):
    values = torch.arange(10, dtype=torch.float32)
    files = {f"rank-{i}.safetensors": {f"param|w|{a}": values[a:b].clone()} for i, (a, b) in enumerate(pairwise(cuts))}
    stored = handwritten(tmp_path / "c", dict(reversed(files.items())), {"w": [2, 5]})
    assert torch.equal(stored.tensor("param", "w"), values.reshape(2, 5))
    assert torch.equal(stored.read("param", "w", 3, 6), values[3:9])


def test_parameters_whose_names_share_a_beginning_are_kept_apart(tmp_path):
    fragments = {"param|a|0": torch.ones(2), "param|a.b|0": torch.full((2,), 2.0), "ema|a|0": torch.full((2,), 3.0)}
    stored = handwritten(tmp_path / "c", {"rank-0.safetensors": fragments}, {"a": [2], "a.b": [2]})
    assert [
        float(stored.read(kind, name, 0, 1)) for kind, name in (("param", "a"), ("param", "a.b"), ("ema", "a"))
    ] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(("missing", "covered"), [("middle", 6), ("end", 7), ("kind", 0)])
def test_a_gap_in_the_coverage_is_an_error(tmp_path, missing, covered):
    pieces = {"middle": [(0, 3), (7, 10)], "end": [(0, 7)], "kind": []}[missing]
    fragments = {f"param|w|{a}": torch.ones(b - a) for a, b in pieces} or {"ema|w|0": torch.ones(10)}
    stored = handwritten(tmp_path / "c", {"rank-0.safetensors": fragments}, {"w": [10]})
    with pytest.raises(CheckpointError, match=f"param of w: {covered} of 10 elements found"):
        stored.tensor("param", "w")


def test_an_overlap_does_not_hide_a_gap(tmp_path):
    files = {f"rank-{i}.safetensors": {"param|w|0": torch.ones(5)} for i in range(2)}
    with pytest.raises(CheckpointError):
        handwritten(tmp_path / "c", files, {"w": [10]}).tensor("param", "w")


def test_the_manifest_states_position_identity_and_every_file(tmp_path):
    folder = write(tmp_path, 7, 2)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["data"] == {"images_seen": 7 * 128, "fingerprint": None}
    assert manifest["rng"] == {"kind": "keyed", "seed": 0, "next_step": 8}
    assert (manifest["world_size"], manifest["zero_stage"], manifest["method_sha256"]) == (2, 2, CONFIG.method_sha256)
    assert RunConfig.model_validate_json(json.dumps(manifest["config"])) == CONFIG
    on_disk = {path.name for path in folder.iterdir()} - {MANIFEST}
    assert set(manifest["files"]) == on_disk == {"rank-00000.safetensors", "rank-00001.safetensors"}
    for name, entry in manifest["files"].items():
        assert (entry["sha256"], entry["bytes"]) == (file_sha256(folder / name), (folder / name).stat().st_size)


def test_shards_hold_their_own_elements_only(tmp_path):
    """The EMA and the masters of 2 ranks together are the whole, once: nothing is stored twice."""
    folder = write(tmp_path, 7, 2)
    sizes = [sum(t.numel() for t in load_file(folder / f"rank-0000{rank}.safetensors").values()) for rank in range(2)]
    assert sum(sizes) == len(KINDS) * sum(p.numel() for p in PARAMETERS.values())
    assert abs(sizes[0] - sizes[1]) <= len(KINDS)


def test_writing_a_step_again_replaces_it_even_at_another_world(tmp_path):
    write(tmp_path, 7, 3)
    folder = write(tmp_path, 7, 1, {name: p + 1 for name, p in PARAMETERS.items()})
    assert {path.name for path in folder.iterdir()} == {MANIFEST, "rank-00000.safetensors"}
    assert torch.equal(Checkpoint(folder).tensor("param", "bias"), PARAMETERS["bias"] + 1)


def test_a_writer_that_dies_before_the_manifest_leaves_nothing_to_load(tmp_path, monkeypatch):
    good = write(tmp_path, 1, 2)

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.checkpoint.writer._write_json", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, 2)
    assert step_folder(tmp_path, 2).is_dir()
    assert complete_steps(tmp_path) == [1]
    assert find_latest(tmp_path).folder == good


@pytest.mark.parametrize("world", [1, 3])
def test_an_attempt_that_was_superseded_writes_nothing(tmp_path, world):
    """Workers left over from a killed driver must not touch the checkpoints of the one that took over."""
    good = write(tmp_path, 5, 2)
    content = {path.name: path.read_bytes() for path in good.iterdir()}
    for step in (5, 6):
        with pytest.raises(SupersededError, match="attempt old was superseded by mine"):
            write(tmp_path, step, world, attempt="old")
    assert {path.name: path.read_bytes() for path in good.iterdir()} == content
    assert complete_steps(tmp_path) == [5]
    assert not step_folder(tmp_path, 6).exists()


def test_an_attempt_that_is_superseded_while_it_writes_leaves_no_manifest(tmp_path, monkeypatch):
    def supersede(path, fragments):
        entry = write_shard(path, fragments)
        if path.name == "rank-00000.safetensors":
            begin_attempt(tmp_path / "attempt", "newer")
        return entry

    monkeypatch.setattr("trainer.checkpoint.writer.write_shard", supersede)
    with pytest.raises(SupersededError, match="superseded while it wrote"):
        write(tmp_path, 6, 2)
    assert complete_steps(tmp_path) == []


def test_skipped_steps_are_no_steps_of_the_optimizer(tmp_path):
    assert Checkpoint(write(tmp_path, 9, 2, skipped=4)).optimizer_steps == 5


@pytest.mark.parametrize("fragments", [{}, {"param|w|0": torch.zeros(0)}, {"b": torch.randn(3, 5), "a": torch.ones(7)}])
def test_a_shard_is_safetensors_with_the_digest_of_its_bytes(tmp_path, fragments):
    entry = write_shard(tmp_path / "shard", fragments)
    assert entry == {"sha256": file_sha256(tmp_path / "shard"), "bytes": (tmp_path / "shard").stat().st_size}
    loaded = load_file(tmp_path / "shard")
    assert loaded.keys() == fragments.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in fragments.items())
    assert len(save(fragments)) == entry["bytes"]


def test_a_slice_that_is_not_contiguous_is_written_as_it_reads(tmp_path):
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    write_shard(tmp_path / "shard", {"column": whole[:, 1]})
    assert load_file(tmp_path / "shard")["column"].tolist() == [1, 5, 9]
