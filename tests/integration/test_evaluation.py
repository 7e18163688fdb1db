"""A killed evaluation goes on from the blocks it has finished, to the result of one that was not killed."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.conftest import Cluster
from tests.integration.conftest import STEPS, FinishedRun, configured
from trainer.run.journal import CheckpointEvaluated, Journal

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> MlflowClient:
    return MlflowClient(cluster.stack.tracking_uri)


METRICS = ("--metrics", "vlb,frechet", "--samples", "300", "--seeds", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGKILL, -9)],
    ids=["told", "killed"],
)
def test_an_evaluation_that_is_ended_goes_on_to_the_same_result(
    cluster: Cluster, finished: FinishedRun, tmp_path: Path, number: int, code: int
) -> None:
    """Two tasks that end once they have finished a block; then one task, which does what is left."""
    out, model = tmp_path / "killed", str(finished.paths.root)
    process = cluster.command("trainer.evaluate", model, *METRICS, "--tasks", "2", "--out", str(out))
    deadline = time.monotonic() + 120
    while not (done := list(out.glob("blocks/*/*.safetensors"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == code, output
    assert ("preempted (SIGTERM); run the same command again to resume" in output) == (code == 75)
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


@pytest.mark.slow
def test_checkpoints_are_evaluated_while_training_goes_on(
    cluster: Cluster, tiny: Path, finished: FinishedRun, client: MlflowClient
) -> None:
    """Training is the same to the bit; a checkpoint's scores and samples are in MLflow at its step, and the last."""
    sets = ["run.name=alongside", "run.register_as=null", "run.evaluate_every=50"]
    config, paths = configured(cluster, tiny, *sets)
    output = cluster.run("trainer", "--config", str(tiny), *(word for item in sets for word in ("--set", item)))
    run = FinishedRun(config, paths, output)
    assert run.losses() == finished.losses()
    assert run.summary["package_sha256"] == finished.summary["package_sha256"]
    records = {record.step: record for record in Journal(paths.journal).records(CheckpointEvaluated)}
    assert records
    assert set(records) <= {50, 100}
    step = max(records)
    assert f"step {step} evaluated: vlb_bpd {records[step].scores['vlb_bpd']:.4g}" in output
    found = json.loads((paths.evaluation(step) / "evaluation.json").read_text())
    assert found["package_sha256"] != run.summary["package_sha256"]
    assert not list(paths.evaluation(step).glob("package/*"))
    history = client.get_metric_history(run.summary["run_id"], "vlb_bpd")
    assert {(each.step, each.value) for each in history} == {
        *((at, record.scores["vlb_bpd"]) for at, record in records.items()),
        (run.summary["step"], run.summary["vlb_bpd"]),
    }
    images = [file.path for file in client.list_artifacts(run.summary["run_id"], "images")]
    assert {int(step) for path in images for step in re.findall(r"samples\W+step\W+(\d+)", path)} == {*records, STEPS}


def test_what_gives_up_its_priority_has_processes_of_its_own_and_uses_them_again(cluster: Cluster) -> None:
    background, other, again, others = json.loads(cluster.run("tests.integration.background").splitlines()[-1])
    assert background == again
    assert background[0] not in (other[0], others[0])
    assert [idle for _, idle in (background, other, again, others)] == [True, False, True, False]


@pytest.mark.slow
def test_a_standalone_evaluation_is_a_run_of_its_own_below_the_training(
    cluster: Cluster, finished: FinishedRun, client: MlflowClient, tmp_path: Path
) -> None:
    """Twice the same command leaves one MLflow run, whose metrics are the model's too."""
    command = ("trainer.evaluate", str(finished.paths.root), "--metrics", "all", "--samples", "300", "--out")
    for _ in range(2):
        cluster.run(*command, str(tmp_path / "out"), "--nfe-curve", "2,3", "--extractors", "classifier,pixels")
    values = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    parent = client.get_run(finished.summary["run_id"])
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`dualview.package_sha256` LIKE '%'"
    found = [
        run
        for run in client.search_runs([parent.info.experiment_id], below)
        if run.data.metrics.get("recall") == values["recall"]
    ]
    assert len(found) == 1
    run = found[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["nll_bpd"] == values["nll_bpd"]
    assert run.data.params["evaluation.samples"] == "300"
    curve = client.get_metric_history(run.info.run_id, "frechet_pixels_at_nfe")
    assert [(each.step, each.value) for each in curve] == [
        (point["nfe"], point["value"]) for point in values["frechet_at_nfe"]["frechet_pixels"]
    ]
    artifacts = {Path(each.path).name for each in client.list_artifacts(run.info.run_id, "results")}
    assert {"report.html", "report.png", "evaluation.json", "denoising.json", "heldout.safetensors"} <= artifacts
    assert parent.outputs is not None
    model = client.get_logged_model(parent.outputs.model_outputs[0].model_id)
    assert ("kid_pixels", values["kid_pixels"]) in {(each.key, each.value) for each in model.metrics or []}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "As a deep VAE" in page
    assert page.count("<figure") == 2 + 7  # panels of the two views
    assert "http" not in page.replace("http-equiv", "")
