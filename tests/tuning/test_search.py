"""A trial of which there are damaged checkpoints only: refused, or begun anew where the sweep was told so."""

from pathlib import Path
from typing import Any

import pytest

from trainer.config.load import resolve, validate
from trainer.data.prepare import prepare
from trainer.errors import RunFailedError
from trainer.run.identity import register_name
from trainer.run.manifest import step_folder
from trainer.run.paths import RunPaths
from tuning import search


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """The configuration of a trial whose only checkpoint was cut off."""
    values = {"network": {"kind": "mlp"}, "run": {"name": "trial", "storage": str(tmp_path)}}
    config = resolve(validate(values))
    paths = RunPaths.of(config)
    register_name(config, paths, prepare(config.data, tmp_path).info.fingerprint)
    folder = step_folder(paths.checkpoints, 5)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    return config.canonical_json()


def test_damaged_checkpoints_are_a_trials_reason(damaged: str):
    assert "--from-scratch to train from step 0 again" in search.complete_trial(damaged, False)["reason"]


def test_told_so_a_trial_begins_anew(damaged: str, monkeypatch: pytest.MonkeyPatch):
    """As far as the workers, which a test of the trainer has."""

    class Begun:
        def __init__(self, *arguments: Any) -> None:
            self.reached = arguments[-1]

        def run(self) -> None:
            raise RunFailedError(f"begun at step {self.reached}")

    monkeypatch.setattr(search.driver, "Driver", Begun)
    assert search.complete_trial(damaged, True) == {"reason": "begun at step 0"}
