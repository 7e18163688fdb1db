"""Bookkeeping files that are empty, cut, garbled or missing: named, made again from what is there, no traceback."""

import json
from typing import Any

import pytest

from diffusion.config import MLPConfig
from tests.oracles.checkpoints import write
from trainer.__main__ import main
from trainer.checkpoint.writer import manifest_fields
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.config.training import OptimConfig
from trainer.data.manifest import DatasetInfo
from trainer.driver.parts import throughput
from trainer.run import identity
from trainer.run.journal import Journal, Metrics, Warned
from trainer.run.paths import RunPaths
from trainer.tracking.tracker import Tracker

DAMAGE: dict[str, Any] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "garbled": lambda text: "\x00" * len(text),
    "another kind": lambda text: "[1, 2]",
    "no text": lambda text: b"\xff\xfe" + text.encode(),
}
INFO = DatasetInfo("digits", "d" * 64, (1, 8, 8), 1437, 360, 10)


@pytest.fixture
def config(tmp_path):
    settings = RunSettings(name="mine", storage=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    return RunConfig(network=MLPConfig(width=8, depth=1), optim=OptimConfig(lr=5e-4), run=settings)


@pytest.fixture
def paths(config):
    return RunPaths.of(config)


def damage(file, how):
    content = DAMAGE[how](file.read_text())
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def begun(config, paths, monkeypatch):
    """A run with a checkpoint of step 7, whose manifest has the run's configuration and data."""
    identity.register_name(config, paths, "d" * 64)

    def fields(_, shapes, image_shape, step, skipped, loss):
        return manifest_fields(config, shapes, image_shape, step, skipped, loss, "d" * 64)

    monkeypatch.setattr("tests.oracles.checkpoints.manifest_fields", fields)
    write(paths.checkpoints, 7, 1)
    return paths


@pytest.mark.parametrize("how", [*DAMAGE, "missing"])
def test_run_json_is_made_again_from_the_newest_checkpoint(config, begun, how):
    before = json.loads(begun.identity.read_text())
    begun.identity.unlink() if how == "missing" else damage(begun.identity, how)
    asked = config.model_copy(update={"optim": OptimConfig()})  # what the command leaves to its default
    resolved = identity.resolve_run(asked)
    assert (resolved.state, resolved.config.optim.lr) == ("resumable", 5e-4)
    assert "made again from the checkpoint of step 7" in resolved.notes[0]
    assert identity.trained_on(begun) == "d" * 64
    identity.register_name(resolved.config, begun, "d" * 64)
    assert json.loads(begun.identity.read_text()) == before
    assert not any("made again" in note for note in identity.resolve_run(asked).notes)


@pytest.mark.parametrize("how", DAMAGE)
def test_run_json_of_a_run_without_checkpoints_is_made_from_the_command(config, paths, how):
    identity.register_name(config, paths, "d" * 64)
    damage(paths.identity, how)
    resolved = identity.resolve_run(config)
    assert resolved.state == "new"
    assert "made from this command" in resolved.notes[0]


def test_a_flipped_digit_in_a_manifest_is_damage_and_no_other_method(config, begun):
    manifest = begun.checkpoints / "step-00000007" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(config.method_sha256, "0" * 8 + config.method_sha256[8:]))
    assert identity.resolve_run(config).state == "resumable"


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_summary_has_the_model_evaluated_again(config, begun, how):
    begun.results.mkdir()
    begun.summary.write_text(json.dumps({"step": 10}))
    damage(begun.summary, how)
    resolved = identity.resolve_run(config)
    assert resolved.state == "resumable"
    assert resolved.notes[-1] == f"{begun.summary} is damaged; the model is evaluated again"


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_tracking_json_has_the_run_recorded_anew(config, begun, how):
    begun.tracking.write_text(json.dumps({"key": "k", "run_id": "r", "described": True, "offset": 12, "step": 3}))
    damage(begun.tracking, how)
    journal = Journal(begun.journal)
    tracker = Tracker(config, begun, INFO, journal)
    assert tracker.run_id is None
    [warning] = journal.records(Warned)
    assert "tracking.json is damaged; the run is recorded in MLflow anew" in warning.text


@pytest.mark.parametrize("how", [*DAMAGE, "missing"])
def test_a_damaged_journal_is_gone_on_with(config, begun, how):
    journal = Journal(begun.journal)
    for step in (1, 2, 3):
        journal.append(Metrics(step=step, values={"images_per_second": 100.0}))
    begun.tracking.write_text(json.dumps({"key": "k", "run_id": "r", "offset": journal.size(), "step": 3}))
    begun.journal.unlink() if how == "missing" else damage(begun.journal, how)
    assert throughput(journal) in (0.0, 100.0)
    tracker = Tracker(config, begun, INFO, journal)
    journal.append(Metrics(step=4, values={"images_per_second": 50.0}))
    new = [record.step for record, _ in journal.read(tracker._offset) if isinstance(record, Metrics)]
    assert new[-1] == 4  # nothing that is appended from now on is passed over


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "tracking.json", "journal.jsonl", "results/summary.json"])
def test_the_command_never_ends_in_a_traceback(config, begun, tmp_path, capsys, monkeypatch, name, how):
    """It comes as far as asking for the cluster, which is not there."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    file = begun.root / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(file.read_text() if file.is_file() else json.dumps({"key": "k", "step": 1}))
    damage(file, how)
    run_file = tmp_path / "run.yaml"
    run_file.write_text(json.dumps(config.model_dump(mode="json")))
    assert main(["--config", str(run_file)]) == 2
    assert capsys.readouterr().err.startswith("error: RAY_ADDRESS = 127.0.0.1:9: no Ray cluster answers")


def test_storage_that_does_not_answer_is_one_line(config, begun, tmp_path, capsys, monkeypatch):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(json.dumps(config.model_dump(mode="json")))

    def stale(_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("trainer.run.identity.read_manifest", stale)
    assert main(["--config", str(run_file)]) == 1
    assert capsys.readouterr().out.startswith("failed: the run's files cannot be read or written: ")
