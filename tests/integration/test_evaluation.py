"""A killed evaluation goes on from the blocks it has finished, to the result of one that was not killed."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cluster
from tests.integration.conftest import FinishedRun

pytestmark = pytest.mark.integration

METRICS = ("--metrics", "vlb,continuous_vlb,nll,frechet", "--samples", "300", "--seeds", "2")


def test_a_killed_evaluation_goes_on_to_the_same_result(
    cluster: Cluster, finished: FinishedRun, tmp_path: Path
) -> None:
    """Two tasks that are killed once they have finished a block; then one task, which does what is left."""
    out, model = tmp_path / "killed", str(finished.paths.root)
    process = cluster.command("trainer.evaluate", model, *METRICS, "--tasks", "2", "--out", str(out))
    deadline = time.monotonic() + 120
    while not (done := list(out.glob("blocks/*/*.safetensors"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in done}

    values = evaluated(cluster, model, out, "1")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert values == evaluated(cluster, model, tmp_path / "whole", "2")
    assert values["vlb_bpd"] == finished.summary["vlb_bpd"]
    assert values["frechet_classifier_sd"] > 0


def evaluated(cluster: Cluster, model: str, out: Path, tasks: str) -> dict[str, Any]:
    """What an evaluation finds, as it prints it and as it keeps it."""
    printed = cluster.run("trainer.evaluate", model, *METRICS, "--tasks", tasks, "--out", str(out), "--json")
    values = json.loads((out / "evaluation.json").read_text())
    assert json.loads(printed[printed.index("{") :]) == values
    return values


def test_a_registered_model_is_scored_as_its_run(cluster: Cluster, finished: FinishedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cluster.run("trainer.evaluate", "tiny@champion", "--metrics", "vlb", "--out", str(out))
    values = json.loads((out / "evaluation.json").read_text())
    assert values["package_sha256"] == finished.summary["package_sha256"]
    assert values["vlb_bpd"] == finished.summary["vlb_bpd"]
