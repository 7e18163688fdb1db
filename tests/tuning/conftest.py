"""A sweep file, and what its runs would leave behind, without running anything."""

from pathlib import Path

import pytest
import yaml

from tests.oracles import summaries
from trainer.run import identity
from trainer.run.paths import RunPaths
from trainer.run.summary import Evaluated, Registration, Score
from tuning.space import Trial, read_sweep
from tuning.sweep import Sweep

BASE = {"training": {"steps": 20}}
SCHEDULES = {"kind": "grid", "values": ["linear", "cosine"]}
WEIGHTINGS = {"kind": "grid", "values": ["simple", "vlb"]}
SPACE = {"process.schedule.kind": SCHEDULES, "objective.weighting.kind": WEIGHTINGS}


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALVIEW_STORAGE", str(tmp_path / "storage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def written(folder: Path, run_file: dict | None = None, **changes) -> Path:
    """A sweep file of two schedules and two weightings, with changes."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE if run_file is None else run_file))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "base": "base.yaml", "space": SPACE, **changes}, sort_keys=False))
    return path


def made(folder: Path, *sets: str, run_file: dict | None = None, **changes) -> Sweep:
    """The sweep of such a file."""
    return Sweep.of(*read_sweep(written(folder, run_file, **changes), list(sets)))


def finish(trial: Trial, vlb: float, se: float, frechet: float | None = None, step: int = 20) -> None:
    """Leave behind what a finished run leaves behind."""
    paths = RunPaths.of(trial.config)
    identity.register_name(trial.config, paths, "d" * 64)
    scale = {"frechet_classifier_heldout": 4.6, "frechet_classifier_gaussian": 75.2, "frechet_classifier_noise": 655.6}
    measured = {} if frechet is None else {"frechet_classifier": frechet, **scale}
    scores = {"vlb_bpd": Score(vlb, se), **{name: Score(value) for name, value in measured.items()}}
    registration = Registration(run_id=f"id-{trial.name}", recorded=True)
    summaries.finish(paths, step=step, evaluated=Evaluated(scores), registration=registration)
