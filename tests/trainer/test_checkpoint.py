"""Checkpoints: written at one number of ranks, read at any other, and never believed when anything is wrong."""

import json
import shutil
import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffusion.config import MLPConfig
from diffusion.network import build_network
from diffusion.package import file_sha256, load_package, verify_package
from tests.oracles.world import FlatMasters, ThreadWorld
from trainer import checkpoint, checkpoint_writer
from trainer.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    Fence,
    SupersededError,
    begin_attempt,
    best_step,
    complete_steps,
    facts,
    find_latest,
    fragments_of,
    prune,
    save,
    sealed,
    step_folder,
)
from trainer.checkpoint_writer import Writer
from trainer.config import RunConfig
from trainer.data.info import DatasetInfo
from trainer.packaging import package_latest
from trainer.paths import RunPaths
from trainer.zero import MOMENTS

CONFIG = RunConfig(network=MLPConfig(width=8, depth=1))
PARAMETERS = {
    "weight": torch.arange(35, dtype=torch.float32).reshape(5, 7) / 3,
    "bias": torch.linspace(-1, 1, 5),
    "scalar": torch.tensor([2.5]),
    "block.w": torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)),
}
KINDS = {"param": 1.0, "ema_0": 0.25, "ema_1": 0.5, "exp_avg": 10.0, "exp_avg_sq": -3.0}


def write(folder, step, world, parameters=PARAMETERS, attempt="mine", skipped=0, loss=None):
    """A checkpoint as `world` ranks write it, through the real `save`; attempt "mine" is in charge."""
    ranks, charge = ThreadWorld(world), folder / "attempt"
    folder.mkdir(parents=True, exist_ok=True)
    begin_attempt(charge, "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "dist", ranks)

        def rank_main(rank):
            masters = FlatMasters(parameters, rank, world)
            aligned = {kind: [flat * KINDS[kind] for flat in masters.flats] for kind in ("param", "ema_0", "ema_1")}
            aligned |= {kind: masters.moments(kind) for kind in MOMENTS}
            stated = facts(CONFIG, masters, (1, 4, 4), step, skipped, loss)
            return save(folder, fragments_of(masters.fragments, aligned), stated, Fence(charge, attempt))

        return ranks.run(rank_main)[0]


def handwritten(folder, files: dict[str, dict[str, torch.Tensor]], shapes, step=1):
    """A checkpoint from given fragments, with a manifest that agrees with them."""
    folder = folder if folder.name.startswith("step-") else step_folder(folder, step)
    folder.mkdir(parents=True)
    for name, fragments in files.items():
        save_file(fragments, folder / name)
    digests = {name: {"sha256": file_sha256(folder / name)} for name in files}
    manifest = sealed(
        {"format_version": 3, "step": step, "skipped": 0, "shapes": shapes, "image_shape": [1, 4, 4], "files": digests}
    )
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Checkpoint(folder)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_parameter_and_moment_is_read_back_whole(tmp_path, world):
    found = Checkpoint(write(tmp_path, 12, world))
    found.verify()
    assert found.step == 12
    assert found.shapes == {name: tuple(p.shape) for name, p in PARAMETERS.items()}
    for kind, factor in KINDS.items():
        tensors = found.tensors(kind)
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
    for found in worlds:
        assert torch.equal(found.read(kind, name, offset, numel), flat[offset : offset + numel])


@pytest.mark.parametrize("cuts", [[0, 10], [0, 4, 10], [0, 1, 9, 10]], ids=["world-1", "world-2", "world-3"])
def test_handwritten_fragments_are_joined_by_their_offsets(tmp_path, cuts):
    values = torch.arange(10, dtype=torch.float32)
    files = {f"rank-{i}.safetensors": {f"param|w|{a}": values[a:b].clone()} for i, (a, b) in enumerate(pairwise(cuts))}
    found = handwritten(tmp_path / "c", dict(reversed(files.items())), {"w": [2, 5]})
    assert torch.equal(found.tensor("param", "w"), values.reshape(2, 5))
    assert torch.equal(found.read("param", "w", 3, 6), values[3:9])


def test_parameters_whose_names_share_a_beginning_are_kept_apart(tmp_path):
    fragments = {"param|a|0": torch.ones(2), "param|a.b|0": torch.full((2,), 2.0), "ema|a|0": torch.full((2,), 3.0)}
    found = handwritten(tmp_path / "c", {"rank-0.safetensors": fragments}, {"a": [2], "a.b": [2]})
    assert [float(found.read(kind, name, 0, 1)) for kind, name in (("param", "a"), ("param", "a.b"), ("ema", "a"))] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(("missing", "covered"), [("middle", 6), ("end", 7), ("kind", 0)])
def test_a_gap_in_the_coverage_is_an_error(tmp_path, missing, covered):
    pieces = {"middle": [(0, 3), (7, 10)], "end": [(0, 7)], "kind": []}[missing]
    fragments = {f"param|w|{a}": torch.ones(b - a) for a, b in pieces} or {"ema|w|0": torch.ones(10)}
    found = handwritten(tmp_path / "c", {"rank-0.safetensors": fragments}, {"w": [10]})
    with pytest.raises(CheckpointError, match=f"param of w: {covered} of 10 elements found"):
        found.tensor("param", "w")


def test_an_overlap_does_not_hide_a_gap(tmp_path):
    files = {f"rank-{i}.safetensors": {"param|w|0": torch.ones(5)} for i in range(2)}
    with pytest.raises(CheckpointError):
        handwritten(tmp_path / "c", files, {"w": [10]}).tensor("param", "w")


def test_the_manifest_states_position_identity_and_every_file(tmp_path):
    folder = write(tmp_path, 7, 2)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["data"] == {"images_seen": 7 * 128}
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

    monkeypatch.setattr(checkpoint, "_write_json", die)
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
    def supersede(fragments, path):
        save_file(fragments, path)
        if path.name == "rank-00000.safetensors":
            begin_attempt(tmp_path / "attempt", "newer")

    monkeypatch.setattr(checkpoint, "save_file", supersede)
    with pytest.raises(SupersededError, match="superseded while it wrote"):
        write(tmp_path, 6, 2)
    assert complete_steps(tmp_path) == []


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bytes(data))


FAULTS = {
    "altered byte": (lambda f: flip(f / "rank-00001.safetensors"), r"rank-00001\.safetensors: altered"),
    "last byte": (lambda f: flip(f / "rank-00000.safetensors", -1), r"rank-00000\.safetensors: altered"),
    "missing shard": (lambda f: (f / "rank-00001.safetensors").unlink(), r"rank-00001\.safetensors: missing"),
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
    found = find_latest(tmp_path)
    assert found.folder == older
    assert len(found.refused) == 1
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
    assert find_latest(tmp_path) == checkpoint.Found(older, [])
    with pytest.raises(CheckpointError, match="not readable"):
        Checkpoint(newer)


@pytest.mark.parametrize("exists", [True, False])
def test_where_there_is_none_none_is_found(tmp_path, exists):
    assert find_latest(tmp_path if exists else tmp_path / "nowhere") == checkpoint.Found(None, [])


def test_where_all_are_damaged_all_reasons_are_told(tmp_path):
    for step in (5, 10):
        flip(write(tmp_path, step, 1) / "rank-00000.safetensors")
    found = find_latest(tmp_path)
    assert found.folder is None
    assert ["step-00000010" in found.refused[0], "step-00000005" in found.refused[1]] == [True, True]


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
    assert best_step(tmp_path) == 2
    edit(step_folder(tmp_path, 2), loss=0.0)  # altered: no longer to be believed
    assert best_step(tmp_path) == 5


def test_skipped_steps_are_no_steps_of_the_optimizer(tmp_path):
    assert Checkpoint(write(tmp_path, 9, 2, skipped=4)).optimizer_steps == 5


def writer_of(folder, monkeypatch):
    """A writer in a world of one, and how to give it the checkpoint of a step."""
    world = ThreadWorld(1)
    monkeypatch.setattr(world, "get_rank", lambda: 0)
    for module in (checkpoint, checkpoint_writer):
        monkeypatch.setattr(module, "dist", world)
    folder.mkdir(parents=True, exist_ok=True)
    begin_attempt(folder / "attempt", "mine")
    masters, writer, done = FlatMasters(PARAMETERS, 0, 1), Writer(), list[int]()

    def begin(step, attempt="mine"):
        fragments = fragments_of(masters.fragments, {"param": masters.flats})
        fence = Fence(folder / "attempt", attempt)
        writer.save(folder, fragments, facts(CONFIG, masters, (1, 4, 4), step), fence, lambda: done.append(step))

    return masters, writer, begin, done


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_leak_into_it(tmp_path, monkeypatch):
    masters, writer, begin, done = writer_of(tmp_path, monkeypatch)
    released, real = threading.Event(), save_file

    def slowly(fragments, path):
        assert released.wait(20)
        real(fragments, path)

    monkeypatch.setattr(checkpoint, "save_file", slowly)
    begin(1)
    masters.flats[0].add_(100)  # the optimizer's next step, in place
    assert complete_steps(tmp_path) == done == []
    released.set()
    begin(2)
    writer.close()
    assert done == complete_steps(tmp_path) == [1, 2]
    assert torch.equal(Checkpoint(step_folder(tmp_path, 1)).tensor("param", "bias"), PARAMETERS["bias"])
    assert torch.equal(Checkpoint(step_folder(tmp_path, 2)).tensor("param", "bias"), PARAMETERS["bias"] + 100)


def test_what_goes_wrong_in_the_writers_thread_is_raised_at_the_next_wait(tmp_path, monkeypatch):
    _, writer, begin, done = writer_of(tmp_path, monkeypatch)
    begin(1, attempt="old")
    with pytest.raises(SupersededError):
        writer.wait()
    writer.close()
    assert done == complete_steps(tmp_path) == []


def test_prune_takes_the_manifest_first(tmp_path, monkeypatch):
    """A prune that dies half way leaves an incomplete folder, not a broken checkpoint."""
    for step in (1, 2):
        write(tmp_path, step, 1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    prune(tmp_path, 1)
    assert step_folder(tmp_path, 1).is_dir()
    assert complete_steps(tmp_path) == [2]


INFO = DatasetInfo("digits", "0" * 64, (1, 4, 4), 100, 70, 10)


def test_the_package_holds_the_ema_of_the_newest_good_checkpoint(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(CONFIG.network, INFO.image_shape)
    parameters = {f"network.{name}": p.detach() for name, p in network.named_parameters()}
    parameters["log_variance.values"] = torch.zeros(3)  # trained beside the network, and no part of the model
    paths = RunPaths(tmp_path)
    write(paths.checkpoints, 3, 2, parameters)
    flip(write(paths.checkpoints, 6, 2, {name: p * 2 for name, p in parameters.items()}) / "rank-00000.safetensors")
    step, digest = package_latest(CONFIG, paths, INFO)
    assert step == 3
    assert digest == verify_package(paths.package)
    denoiser, config = load_package(paths.package)
    assert (config.process, config.network, config.solver) == (CONFIG.process, CONFIG.network, CONFIG.evaluation.solver)
    assert isinstance(denoiser.network, torch.nn.Module)
    for name, parameter in denoiser.network.named_parameters():
        assert torch.equal(parameter, parameters[f"network.{name}"] * 0.5)


def test_without_a_good_checkpoint_there_is_no_package_and_the_reason_is_told(tmp_path):
    paths = RunPaths(tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint; none was written"):
        package_latest(CONFIG, paths, INFO)
    flip(write(paths.checkpoints, 6, 1) / "rank-00000.safetensors")
    with pytest.raises(CheckpointError, match="altered since it was written"):
        package_latest(CONFIG, paths, INFO)
