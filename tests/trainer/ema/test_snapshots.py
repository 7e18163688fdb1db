"""Snapshots of the EMA's tracks: which are kept, what is made of them, and `python -m trainer.ema`."""

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffusion.config import MLPConfig
from diffusion.ema import gamma_from_sigma_rel, step_weights
from diffusion.network import build_network
from diffusion.package import load_package, verify_package
from tests.conftest import ROOT
from tests.oracles.world import FlatMasters, ThreadWorld
from trainer.checkpoint.fragments import fragments_of
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import manifest_fields, save
from trainer.config.run_config import RunConfig
from trainer.config.training import EmaConfig
from trainer.data.dataset import DatasetInfo
from trainer.ema.__main__ import main
from trainer.ema.export import package_latest, package_weights
from trainer.ema.sharded import EMA_KINDS, ShardedEma
from trainer.ema.snapshots import ema_sources, forget, interval, prune
from trainer.run.attempt import Fence, begin_attempt
from trainer.run.identity import register_name
from trainer.run.manifest import complete_steps, step_folder
from trainer.run.paths import RunPaths

CONFIG = RunConfig(network=MLPConfig(width=4, depth=1))
STEPS, EVERY = 320, CONFIG.ema.snapshot_every


@given(st.integers(1, 10**7), st.integers(1, 1000))
def test_from_sixteen_intervals_on_there_are_16_to_31_evenly_spaced(step, every):
    spacing = interval(step, every)
    assert spacing % every == 0
    count = step // spacing
    assert count < 32
    assert count >= 16 or step < 32 * every
    if step >= 16 * every:
        assert count >= 16


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 100))
def test_what_is_kept_later_was_kept_before(step, further, every):
    assert interval(step + further, every) % interval(step, every) == 0


def write(folder, step, tensors: Mapping[str, dict[str, torch.Tensor]], world=2):
    """A checkpoint of some kinds as two ranks write it."""
    ranks = ThreadWorld(world)
    folder.mkdir(parents=True, exist_ok=True)
    begin_attempt(folder / "attempt", "a")

    def rank_main(rank):
        masters = {kind: FlatMasters(parameters, rank, world) for kind, parameters in tensors.items()}
        first = next(iter(masters.values()))
        fragments = fragments_of(first.fragments, {kind: part.flats for kind, part in masters.items()})
        return save(
            folder, fragments, manifest_fields(CONFIG, first.shapes(), (1, 2, 2), step), Fence(folder / "attempt", "a")
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.checkpoint.writer.dist", ranks)
        return ranks.run(rank_main)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose weights are, after step k, 1 in place k and 0 elsewhere: an average shows its profile's weights."""
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    register_name(CONFIG, paths, "d" * 64)
    masters = [torch.zeros(STEPS)]
    ema = ShardedEma(masters, CONFIG.ema.tracks)
    for step in range(1, STEPS + 1):
        masters[0].zero_()[step - 1] = 1
        ema.update(step, torch.tensor(True))
        if step % interval(step, EVERY) == 0:
            write(paths.ema, step, {kind: {"profile": ema.tracks[kind][0].clone()} for kind in EMA_KINDS})
            prune(paths.ema, step, EVERY)
    write(
        paths.checkpoints,
        STEPS,
        {
            "param": {"profile": masters[0]},
            **{kind: {"profile": ema.tracks[kind][0]} for kind in EMA_KINDS},
        },
    )
    return paths


def test_snapshots_are_thinned_out_as_the_run_goes_on(run):
    assert complete_steps(run.ema) == list(range(16, STEPS + 1, 16))


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.12, 0.15])
def test_an_average_of_another_width_has_that_widths_weights(run, sigma_rel):
    sources = ema_sources(run.ema, CONFIG.ema, Checkpoint(step_folder(run.checkpoints, STEPS)))
    wanted = step_weights(STEPS, gamma_from_sigma_rel(sigma_rel))
    made = sources.tensors(sigma_rel)["profile"].double().numpy()
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert len(sources.checkpoints) == 20
    assert 0 < sources.error(sigma_rel) < 0.015
    assert error == pytest.approx(sources.error(sigma_rel), rel=0.1)
    assert made.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", EMA_KINDS)
def test_a_tracks_own_width_is_read_bitwise(run, kind):
    target = Checkpoint(step_folder(run.checkpoints, STEPS))
    sigma_rel = CONFIG.ema.tracks[EMA_KINDS.index(kind)]
    sources = ema_sources(run.ema, CONFIG.ema, target)
    assert torch.equal(sources.tensors(sigma_rel)["profile"], target.tensor(kind, "profile"))
    assert sources.error(sigma_rel) == 0


def test_an_average_at_an_earlier_snapshot_uses_none_after_it(run):
    sources = ema_sources(run.ema, CONFIG.ema, Checkpoint(step_folder(run.ema, 160)))
    assert [source.step for source in sources.checkpoints] == list(range(16, 161, 16))
    assert sources.tensors(0.075)["profile"][160:].abs().max() == 0


def test_a_snapshot_that_was_altered_is_left_out_and_named(tmp_path):
    tracks = {kind: {"w": torch.ones(8)} for kind in EMA_KINDS}
    for step in (8, 16, 24):
        write(tmp_path, step, tracks)
    shard = step_folder(tmp_path, 16) / "rank-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    sources = ema_sources(tmp_path, CONFIG.ema, Checkpoint(step_folder(tmp_path, 24)))
    assert [source.step for source in sources.checkpoints] == [8, 24]
    assert len(sources.refused) == 1
    assert "step-00000016" in sources.refused[0]
    forget(tmp_path, 8)
    assert complete_steps(tmp_path) == [8]


@pytest.fixture
def packageable(tmp_path):
    """A short run of a real network, with one snapshot before its checkpoint."""
    paths = RunPaths(tmp_path / "run")
    register_name(CONFIG, paths, "d" * 64)
    network = build_network(CONFIG.network, (1, 2, 2))
    weights = {f"network.{name}": p.detach() for name, p in network.named_parameters()}
    tracks = dict.fromkeys(EMA_KINDS, weights)
    write(paths.ema, 8, tracks)
    write(paths.checkpoints, 12, {"param": weights, **tracks})
    return paths, weights


def test_the_command_writes_a_package_that_loads(packageable, tmp_path, capsys):
    paths, weights = packageable
    out = tmp_path / "narrow"
    assert main([str(paths.root), "--sigma-rel", "0.075", "--out", str(out)]) == 0
    denoiser, config = load_package(out)
    assert config.image_shape == (1, 2, 2)
    assert isinstance(denoiser.network, torch.nn.Module)
    expected = package_weights(weights)
    for name, value in denoiser.network.state_dict().items():
        torch.testing.assert_close(value, expected[name])  # weights that stood still keep their values
    assert "sigma_rel 0.075" in capsys.readouterr().out


def test_several_widths_are_packages_of_their_own(packageable, tmp_path, capsys):
    paths, _ = packageable
    out = tmp_path / "widths"
    widths = ["0.06", "0.1", "0.06"]
    assert (
        main([str(paths.root), *(word for width in widths for word in ("--sigma-rel", width)), "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    assert sorted(folder.name for folder in out.iterdir()) == ["sigma-0.06", "sigma-0.1"]
    for folder in out.iterdir():
        verify_package(folder)
        assert said.count(f"sampler generate {folder} ") == 1


def test_the_runs_own_package_is_that_of_the_command(packageable, tmp_path):
    paths, _ = packageable
    narrow = CONFIG.model_copy(update={"ema": EmaConfig(sigma_rel=0.075)})
    info = DatasetInfo("digits", "0" * 64, (1, 2, 2), 100, 70, 10)
    out = tmp_path / "narrow"
    assert main([str(paths.root), "--sigma-rel", "0.075", "--out", str(out)]) == 0
    assert package_latest(narrow, paths, info) == (12, verify_package(out))


def test_a_newest_checkpoint_that_was_altered_is_passed_over_and_named(packageable, capsys):
    paths, weights = packageable
    altered = write(paths.checkpoints, 14, {"param": weights, "ema_0": weights, "ema_1": weights})
    (altered / "rank-00000.safetensors").write_bytes(b"")
    assert main([str(paths.root)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: not used:" in shown
    assert "step-00000014" in shown
    assert "step 12:" in shown
    (step_folder(paths.checkpoints, 12) / "rank-00000.safetensors").write_bytes(b"")
    assert main([str(paths.root)]) == 2
    assert "no good checkpoint: " in capsys.readouterr().err


@pytest.mark.parametrize("there", ["file", "below a file", "folder with a file", "the run itself"])
def test_what_is_there_is_not_written_over(packageable, tmp_path, capsys, there):
    paths, _ = packageable
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    out = {
        "file": tmp_path / "taken" / "mine",
        "below a file": tmp_path / "taken" / "mine" / "out",
        "folder with a file": tmp_path / "taken",
        "the run itself": paths.root,
    }[there]
    before = sorted(tmp_path.rglob("*"))
    assert main([str(paths.root), "--sigma-rel", "0.1", "--out", str(out)]) == 2
    assert "allowed: a new or an empty folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken" / "mine").read_text() == "mine"


def test_too_few_snapshots_for_a_width_are_refused_before_anything_is_written(packageable, tmp_path, capsys):
    paths, _ = packageable
    out = tmp_path / "wide"
    arguments = [str(paths.root), "--sigma-rel", "0.1", "--sigma-rel", "0.15", "--out", str(out)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "--sigma-rel 0.15: error 15.7% with the tracks of 2 steps up to 12; allowed: 5%" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_help_needs_no_torch():
    code = "import sys; from trainer.ema.__main__ import parser; parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_a_width_it_lists_what_could_be_made(packageable, capsys):
    assert main([str(packageable[0].root)]) == 0
    shown = capsys.readouterr().out
    assert "a track" in shown
    assert "0.075" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sigma-rel", "0.2", "--out", "x"], "--sigma-rel 0.2: allowed: 0.05 to 0.15"),
        (["--sigma-rel", "0.01", "--out", "x"], "allowed: 0.05 to 0.15"),
        (["--sigma-rel", "0.1"], "--sigma-rel and --out go together"),
        (["--step", "9"], "--step 9: no checkpoint and no snapshot; allowed: 8, 12"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(packageable, capsys, arguments, said):
    assert main([str(packageable[0].root), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_bad_input(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "said"),
    [({"tracks": (0.1, 0.05)}, "the smaller first"), ({"sigma_rel": 0.2}, "0.05 to 0.15, which the tracks span")],
)
def test_widths_that_the_tracks_do_not_span_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        EmaConfig(**values)
