"""A sweep on the real stack: killed after its first trial, run again to the end, and found whole in MLflow."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import Cluster
from tests.integration.conftest import TINY
from trainer.run.identity import locked
from trainer.run.paths import RunPaths
from tuning.space import read_sweep
from tuning.sweep import Sweep

pytestmark = pytest.mark.integration

DEADLINE_S = 120
CHANGES = {
    "training.steps": 20,
    "parallel.workers": 1,
    "evaluation.metrics": ["vlb", "frechet"],
    "run.experiment": "swept",
    "run.checkpoint_every": 5,
}
SWEEP = {
    "name": "swept",
    "base": "tiny.yaml",
    "set": CHANGES,
    "space": {
        "process.schedule.kind": {"kind": "grid", "values": ["linear", "cosine"]},
        "objective.weighting.kind": {"kind": "grid", "values": ["simple", "vlb"]},
    },
    "concurrent_trials": 2,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


def sweep_of(cluster: Cluster, file: Path) -> Sweep:
    places = [f"run.storage={cluster.storage}", f"run.tracking_uri={cluster.stack.tracking_uri}"]
    return Sweep.of(*read_sweep(file, places))


def done(sweep: Sweep) -> list[RunPaths]:
    return [paths for (_, paths), state in zip(sweep.paths(), sweep.states(), strict=True) if state == "done"]


def wait_for_one_done(sweep: Sweep) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done(sweep):
        assert time.monotonic() < deadline, "no trial was done in time"
        time.sleep(0.1)


def done_when_at_rest(sweep: Sweep) -> list[RunPaths]:
    """The runs that a killed sweep leaves done: a trial beside the first may end before it is stopped too."""
    for _, paths in sweep.paths():
        with locked(paths, DEADLINE_S):
            pass
    return done(sweep)


def results(runs: list[RunPaths]) -> list[bytes]:
    return [file.read_bytes() for paths in runs for file in (paths.journal, paths.summary)]


def test_a_killed_sweep_runs_only_what_is_not_done_and_is_recorded_whole(cluster: Cluster, file: Path):
    sweep = sweep_of(cluster, file)
    process = cluster.command("tuning", "run", "--config", str(file))
    try:
        wait_for_one_done(sweep)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    finished = done_when_at_rest(sweep)
    assert 1 <= len(finished) < 4
    kept = results(finished)

    output = cluster.run("tuning", "run", "--config", str(file))
    assert f"{len(finished)} of 4 trials are done" in output
    assert results(finished) == kept
    assert sweep.states() == ["done"] * 4
    assert "Traceback" not in output
    assert "Warning" not in output
    for trial in sweep.trials:
        paths = RunPaths.of(trial.config)
        assert (f": {trial.label}" in output) == (paths not in finished)
    assert f"heat map: {sweep.heatmap}" in output
    with Image.open(sweep.heatmap) as image:
        assert image.format == "PNG"
    assert not sweep.tune.exists()
    check_mlflow(cluster, sweep)

    before = sweep.record
    assert "4 of 4 trials are done" in cluster.run("tuning", "run", "--config", str(file))
    assert sweep.record == before
    report = json.loads(cluster.run("tuning", "report", "swept", "--json"))
    assert [row["state"] for row in report["rows"]] == ["done"] * 4
    assert [row["settings"] for row in report["rows"]] == [trial.settings for trial in sweep.trials]


def check_mlflow(cluster: Cluster, sweep: Sweep) -> None:
    """One run for the sweep, finished, with its files and scores, and the four trials' runs below it."""
    from mlflow import MlflowClient

    client = MlflowClient(cluster.stack.tracking_uri)
    experiment = client.get_experiment_by_name("swept")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "dualview.sweep" in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("swept", "FINISHED")
    assert parent.data.tags["dualview.sweep_sha256"] == sweep.digest
    assert parent.info.run_id == sweep.record["parent_run_id"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"sweep.json", "report.json", "heatmap.png"}
    assert len(parent.data.metrics) == 8
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(str(run.info.run_name) for run in children) == sorted(trial.name for trial in sweep.trials)
    assert len(runs) == 5
