"""The main job on real Ray, DeepSpeed, MLflow and Serve, on a small network."""

import io
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from diffusion.package import verify_package
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import CHECKPOINT_EVERY, STEPS, FinishedRun, configured
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.worker.meters import bucket_names

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> MlflowClient:
    return MlflowClient(cluster.stack.tracking_uri)


def test_summary_holds_the_named_metrics_and_the_package(finished: FinishedRun) -> None:
    summary = finished.summary
    assert summary["step"] == STEPS
    assert summary["vlb_bpd"] == pytest.approx(
        summary["vlb_prior_bpd"] + summary["vlb_diffusion_bpd"] + summary["vlb_reconstruction_bpd"], rel=1e-12
    )
    assert 0 < summary["vlb_bpd_se"] < summary["vlb_bpd"]
    scale = [summary[f"frechet_classifier{name}"] for name in ("_heldout", "_gaussian", "_noise")]
    assert scale == sorted(scale)
    assert summary["images_per_second"] > 0
    assert summary["package_sha256"] == verify_package(finished.paths.package)
    assert summary["model_uri"] == "models:/tiny@champion"
    samples = np.load(finished.paths.results / "samples.npy")
    assert samples.shape == (130, 8, 8)
    assert samples.dtype == np.uint8


def test_output_is_a_few_plain_lines(finished: FinishedRun) -> None:
    lines = finished.output.strip().splitlines()
    assert len(lines) <= 12, finished.output
    assert not any("warn" in line.lower() or "deprecat" in line.lower() for line in lines), finished.output


def test_the_same_command_again_says_that_the_run_is_done(cluster: Cluster, tiny: Path, finished: FinishedRun) -> None:
    before = finished.paths.journal.stat().st_size
    output = cluster.run("trainer", "--config", str(tiny))
    assert "is done" in output
    assert "--set seed=1" in output
    assert finished.paths.journal.stat().st_size == before


def test_mlflow_run_holds_what_happened(client: MlflowClient, finished: FinishedRun) -> None:
    run = client.get_run(finished.summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["process.schedule.kind"] == "cosine"
    assert run.data.params["training.steps"] == str(STEPS)
    assert len(run.data.tags["mlflow.source.git.commit"].removesuffix("-dirty")) in (40, len("unknown"))
    assert run.data.tags["dualview.dataset_fingerprint"] == finished.summary["dataset_fingerprint"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    assert [metric.value for metric in history] == finished.losses()
    assert {"gradient_norm", "images_per_second", "lr"} <= set(run.data.metrics)
    assert set(bucket_names()) & set(run.data.metrics)
    assert run.inputs is not None
    dataset = run.inputs.dataset_inputs[0].dataset
    assert finished.summary["dataset_fingerprint"].startswith(dataset.digest)
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "results")}
    assert {"results/samples.png", "results/summary.json", "results/samples.npy"} <= artifacts
    assert "config.json" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_metrics_are_tied_to_the_logged_model_and_the_data_set(client: MlflowClient, finished: FinishedRun) -> None:
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id], filter_string="metrics.vlb_bpd < 1000")
    model = next(m for m in models if m.name == finished.config.run.name)
    metrics = {metric.key: metric for metric in model.metrics or []}
    assert metrics["vlb_bpd"].value == finished.summary["vlb_bpd"]
    assert metrics["frechet_classifier"].dataset_name == "digits"
    assert metrics["frechet_classifier"].step == STEPS


def test_registered_model_loads_with_pickle_off(
    cluster: Cluster, finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(cluster.stack.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    rows = pd.DataFrame({"seed": [0, 0, 1, 0], "image": [0, 1, 0, 0]})
    images = model.predict(rows)
    evaluated = np.load(finished.paths.results / "samples.npy")
    np.testing.assert_allclose(images[:2, :, :, 0].astype(int), evaluated[:2].astype(int), atol=1)
    assert np.array_equal(images[0], images[3])
    assert not np.array_equal(images[0], images[2])


def test_killed_driver_resumes_to_the_same_weights_bitwise(cluster: Cluster, tiny: Path, finished: FinishedRun) -> None:
    sets = ["run.name=killed", "run.register_as=null", "evaluation.metrics=[vlb]"]
    _, paths = configured(cluster, tiny, *sets)
    arguments = ["trainer", "--config", str(tiny), *(word for item in sets for word in ("--set", item))]
    process = cluster.command(*arguments)
    try:
        _wait_for_checkpoint(paths.checkpoints, process)
    finally:
        process.kill()
        process.communicate()
    output = cluster.run(*arguments)
    resumed = re.search(rf"resuming after step (\d+) of {STEPS}", output)
    assert resumed, output
    assert CHECKPOINT_EVERY <= int(resumed[1]) < STEPS
    ours, theirs = (Checkpoint(find_latest(p.checkpoints).folder) for p in (paths, finished.paths))  # type: ignore[arg-type]
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"):
        for name in theirs.shapes:
            assert np.array_equal(ours.tensor(kind, name).numpy(), theirs.tensor(kind, name).numpy()), (kind, name)
    assert verify_package(paths.package) == finished.summary["package_sha256"]


def _wait_for_checkpoint(checkpoints: Path, process: "subprocess.Popen[str]") -> None:
    """Return when the first checkpoint is complete; watches the folder itself, as fast as it can."""
    while process.poll() is None:
        if any(checkpoints.glob("step-*/manifest.json")):
            return
    raise AssertionError(f"the run ended without a checkpoint:\n{process.communicate()[0]}")


@pytest.mark.slow
def test_a_dead_tracking_server_costs_a_warning_and_the_same_command_uploads_later(
    cluster: Cluster, tiny: Path, client: MlflowClient, finished: FinishedRun
) -> None:
    arguments = ["trainer", "--config", str(tiny), "--set", "run.name=dead-server"]
    output = cluster.run(*arguments, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "warning: MLflow at http://127.0.0.1:9 did not answer" in output
    _, paths = configured(cluster, tiny, "run.name=dead-server")
    before = json.loads(paths.summary.read_text())
    assert (before["run_id"], before["package_sha256"]) == (None, finished.summary["package_sha256"])
    cluster.run(*arguments)
    after = json.loads(paths.summary.read_text())
    history = client.get_metric_history(after["run_id"], "loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    assert after["registered_model"] == "tiny"


def test_submitted_job_leaves_out_local_folders_and_its_results_outlive_it(
    cluster: Cluster, tiny: Path, finished: FinishedRun, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for folder in (".venv", "var", "out"):
        (checkout / folder).mkdir()
        (checkout / folder / "large").write_bytes(b"x" * 1000)
    shutil.copy(tiny, checkout / "configs" / "tiny.yaml")
    (checkout / "probe.py").write_text(
        "import os, trainer; print('job sees', trainer.__file__, sorted(os.listdir('.')))"
    )
    output = submit(cluster, checkout, "python", "probe.py")
    seen = next(line for line in output.splitlines() if line.startswith("job sees"))
    assert "working_dir_files" in seen
    assert "'configs'" in seen
    assert not any(f"'{folder}'" in seen for folder in (".venv", "var", "out", ".git"))
    sets = ["run.name=submitted", "run.register_as=null", "evaluation.metrics=[vlb]"]
    words = (word for item in sets for word in ("--set", item))
    submit(cluster, checkout, "python", "-m", "trainer", "--config", "configs/tiny.yaml", *words)
    _, paths = configured(cluster, tiny, *sets)
    summary = json.loads(paths.summary.read_text())
    assert summary["package_sha256"] == finished.summary["package_sha256"]


def submit(cluster: Cluster, checkout: Path, *command: str) -> str:
    """`ray job submit --working-dir . -- COMMAND`, run to its end."""
    return cluster.run("ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", *command, cwd=checkout)


def test_sampler_serves_the_registered_model_over_http(cluster: Cluster, finished: FinishedRun, tmp_path: Path) -> None:
    port = str(cluster.stack.ports["serve"])
    cluster.run("sampler", "serve", "--model", "tiny@champion", "--port", port, "--num-cpus", "0.5", "--detach")
    body = {"model": "tiny", "n": 64, "seed": 0, "format": "npy"}
    request = urllib.request.Request(
        f"{cluster.stack.sampler}/v1/images", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["X-Package-SHA256"] == finished.summary["package_sha256"]
        images = np.load(io.BytesIO(response.read()))
    evaluated = np.load(finished.paths.results / "samples.npy")[:64, ..., np.newaxis]
    np.testing.assert_allclose(images.astype(int), evaluated.astype(int), atol=1)
