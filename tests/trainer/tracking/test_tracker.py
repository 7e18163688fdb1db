"""The tracker against a real MLflow store on sqlite, a dead server, and clients that fail at the worst moment."""

import os
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from trainer import files
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.run.journal import CheckpointEvaluated, CheckpointSaved, Journal, Metrics, Warned
from trainer.run.paths import RunPaths
from trainer.run.summary import CurvePoint, Evaluated, ExtractorUsed, Score
from trainer.tracking import client as tracking_client
from trainer.tracking.client import is_outage
from trainer.tracking.runs import flatten, log_evaluation
from trainer.tracking.tracker import Tracker

INFO = DatasetInfo("digits", "ab" * 32, (1, 8, 8), 1437, 360, 10)
DEAD = "http://127.0.0.1:9"

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(autouse=True)
def _quick_and_clean(monkeypatch):
    """Polls without waiting, and leaves the environment as it was."""
    monkeypatch.setattr("trainer.tracking.tracker.POLL_SECONDS", 0.01)
    monkeypatch.setattr("trainer.tracking.tracker.RETRY_SECONDS", 0.01)
    monkeypatch.setenv("DUALVIEW_GIT_COMMIT", "0123abcd")
    before = dict(os.environ)
    for name, value in tracking_client.DEFAULTS.items():
        monkeypatch.setenv(name, value)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One sqlite store for the module; making its tables takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tracking_client.DEFAULTS.items():
            patch.setenv(name, value)
        from mlflow import MlflowClient

        folder = tmp_path_factory.mktemp("mlflow")
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        client.search_experiments()
        yield folder, client


class Line:
    """One run's configuration, journal and trackers."""

    def __init__(self, storage, uri, experiment):
        settings = RunSettings(experiment=experiment, name="mine", storage=str(storage), tracking_uri=uri)
        self.config = RunConfig(run=settings)
        self.paths = RunPaths.of(self.config)
        self.paths.root.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.paths.journal)
        self.trackers = []
        self.client: Any = None

    def record(self, *steps):
        for step in steps:
            self.journal.append(Metrics(step=step, values={"loss": 1 / step, "lr": 1e-3}))

    def tracker(self, client=None):
        tracker = Tracker(self.config, self.paths, INFO, self.journal)
        if client is not None:
            tracker._client, tracker.run_id = client, "run"
        self.trackers.append(tracker)
        tracker.start()
        return tracker


@pytest.fixture
def line(tmp_path, request):
    made = Line(tmp_path, DEAD, request.node.name[:80].replace("[", "-").replace("]", ""))
    yield made
    stop(made)


@pytest.fixture
def stored(store, request):
    folder, client = store
    made = Line(folder, f"sqlite:///{folder}/mlflow.db", request.node.name[:80])
    made.client = client
    yield made
    stop(made)


def stop(made):
    for tracker in made.trackers:
        tracker._stop_event.set()
        tracker.join(20)
        assert not tracker.is_alive()


def history(made, name="loss"):
    return [(m.step, m.value) for m in made.client.get_metric_history(made.trackers[-1].run_id, name)]


def runs(made):
    experiment = made.client.get_experiment_by_name(made.config.run.experiment)
    return made.client.search_runs([experiment.experiment_id])


def test_everything_is_uploaded_with_its_own_time_and_the_run_is_finished(stored):
    stored.record(1, 2)
    stored.journal.append(CheckpointSaved(step=2, stalled=0.0, seconds=0.1))
    tracker = stored.tracker()
    tracker.drain(30)
    stored.record(3)
    tracker.finish("FINISHED", 30)
    assert history(stored) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    written = [record.time_ms for record in stored.journal.records(Metrics)]
    assert [m.timestamp for m in stored.client.get_metric_history(tracker.run_id, "lr")] == written
    (run,) = runs(stored)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")


def test_a_run_says_what_it_was_made_from(stored, tmp_path):
    tracker = stored.tracker()
    tracker.drain(30)
    run = stored.client.get_run(tracker.run_id)
    config = stored.config
    assert run.data.params == {name: str(value) for name, value in flatten(config.model_dump(mode="json")).items()}
    assert run.data.tags["mlflow.source.git.commit"] == "0123abcd"
    assert run.data.tags["dualview.method_sha256"] == config.method_sha256
    assert run.data.tags["dualview.config_sha256"] == config.config_sha256
    assert run.data.tags["dualview.dataset_fingerprint"] == INFO.fingerprint
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", INFO.fingerprint[:32])
    downloaded = stored.client.download_artifacts(tracker.run_id, "config.json", str(tmp_path))
    with open(downloaded) as file:
        assert RunConfig.model_validate_json(file.read()) == config


def test_a_driver_killed_midway_and_restarted_uploads_the_rest_exactly_once(stored):
    """The second attempt resumes from the checkpoint of step 2, so its steps 3 and 4 are recorded again."""
    stored.record(1, 2, 3, 4)
    first = stored.tracker()
    first.drain(30)
    stop(stored)
    stored.record(3, 4, 5, 6)
    second = stored.tracker()
    second.drain(30)
    assert second.run_id == first.run_id
    assert [step for step, _ in history(stored)] == [1, 2, 3, 4, 5, 6]
    assert len(runs(stored)) == 1
    assert stored.client.get_run(second.run_id).info.status == "RUNNING"


def test_a_tracker_killed_before_it_noted_its_progress_doubles_nothing(stored):
    stored.record(1, 2, 3)
    first = stored.tracker()
    first.drain(30)
    stop(stored)
    noted = files.read_json(stored.paths.tracking)
    files.write_json(stored.paths.tracking, {**noted, "offset": 0, "step": 0})
    second = stored.tracker()
    second.drain(30)
    assert [step for step, _ in history(stored)] == [1, 2, 3]


def test_a_tracker_killed_before_it_noted_its_run_finds_it_again(stored):
    stored.record(1, 2)
    first = stored.tracker()
    first.drain(30)
    stop(stored)
    noted = files.read_json(stored.paths.tracking)
    progress = {"run_id": None, "described": False, "offset": 0, "step": 0}
    files.write_json(stored.paths.tracking, {**noted, **progress})
    second = stored.tracker()
    second.drain(30)
    assert second.run_id == first.run_id
    assert len(runs(stored)) == 1


def test_another_server_gets_a_run_of_its_own_with_everything(stored):
    stored.record(1, 2, 3)
    files.write_json(stored.paths.tracking, {"tracking_uri": DEAD, "run_id": "elsewhere", "offset": 10**6, "step": 3})
    tracker = stored.tracker()
    tracker.drain(30)
    assert tracker.run_id != "elsewhere"
    assert [step for step, _ in history(stored)] == [1, 2, 3]


def test_a_server_that_dies_while_the_run_is_made_leaves_one_run(stored, monkeypatch):
    from mlflow import MlflowClient

    whole, failures = MlflowClient.log_inputs, iter([ConnectionError("gone"), ConnectionError("gone")])

    def fail_twice(self, *arguments, **named):
        for failure in failures:
            raise failure
        return whole(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_inputs", fail_twice)
    tracker = stored.tracker()
    deadline = time.monotonic() + 30
    while tracker.run_id is None and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.drain(30)
    assert len(runs(stored)) == 1


def test_a_dead_server_stops_nothing(line):
    """Records keep flowing, the wait ends at its deadline, and nobody is told of a refusal."""
    tracker = line.tracker()
    started = time.monotonic()
    line.record(*range(1, 201))
    assert time.monotonic() - started < 1
    started = time.monotonic()
    with pytest.raises((TimeoutError, MlflowException)):
        tracker.drain(0.5)
    assert time.monotonic() - started < 1
    deadline = time.monotonic() + 30
    while tracker.error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tracker.error is not None
    assert is_outage(tracker.error)
    assert "127.0.0.1" in str(tracker.error)
    assert files.read_json(line.paths.tracking)["run_id"] is None
    started = time.monotonic()
    tracker.finish("FAILED", 0.2)
    assert time.monotonic() - started < 1
    assert sum(1 for _ in line.journal.read()) == 200


def test_a_run_that_is_deleted_in_mlflow_is_made_anew_from_the_journal(stored):
    stored.record(1, 2)
    tracker = stored.tracker()
    tracker.drain(30)
    deleted = tracker.run_id
    stored.client.delete_run(deleted)
    stored.record(3)
    deadline = time.monotonic() + 30
    while tracker.run_id in (deleted, None) and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.finish("FINISHED", 30)
    assert tracker.run_id != deleted
    assert [step for step, _ in history(stored)] == [1, 2, 3]
    assert stored.client.get_run(tracker.run_id).info.status == "FINISHED"
    assert stored.client.get_run(deleted).info.lifecycle_stage == "deleted"
    assert not list(stored.journal.records(Warned))


def test_a_deleted_experiment_is_named_once_with_what_to_do(stored):
    stored.record(1)
    first = stored.tracker()
    first.drain(30)
    stop(stored)
    experiment = stored.client.get_experiment_by_name(stored.config.run.experiment)
    stored.client.delete_experiment(experiment.experiment_id)
    second = stored.tracker()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"was deleted in MLflow; allowed: to restore it there \(mlflow experiments"):
        second.drain(30)
    assert time.monotonic() - began < 20  # a refusal is not waited for
    time.sleep(0.2)
    [warning] = stored.journal.records(Warned)
    assert warning.text.startswith("MLflow does not record this run: run.experiment = ")
    stored.client.restore_experiment(experiment.experiment_id)
    deadline = time.monotonic() + 30
    while second.error is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    second.finish("FINISHED", 30)
    assert second.run_id == first.run_id
    assert second.error is None


class Client:
    """An MLflow client that remembers, and fails or waits where it is told to."""

    def __init__(self, failures=(), ending=None):
        self.seen, self.status = [], None
        self._failures, self._ending = iter(failures), ending
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def log_batch(self, run_id, metrics):
        self.entered.set()
        assert self.go_on.wait(20)
        failure = next(self._failures, None)
        if failure:
            raise failure
        self.seen += [(m.key, m.step) for m in metrics]

    def set_terminated(self, run_id, status):
        if self._ending:
            raise self._ending
        self.status = status

    def steps(self):
        return [step for key, step in self.seen if key == "loss"]


def test_long_journals_go_in_batches_that_mlflow_takes(line, monkeypatch):
    sizes = []
    client = Client()
    whole = client.log_batch
    monkeypatch.setattr(
        client, "log_batch", lambda run_id, metrics: (sizes.append(len(metrics)), whole(run_id, metrics))
    )
    line.record(*range(1, 801))
    line.tracker(client).drain(20)
    assert max(sizes) <= 1000
    assert Counter(client.seen) == Counter((key, step) for step in range(1, 801) for key in ("loss", "lr"))


@pytest.mark.parametrize(
    "failures", [[ConnectionError("down")], [None, ConnectionError("down")]], ids=["first-batch", "second-batch"]
)
def test_a_server_that_fails_for_a_while_gets_everything_once_it_is_back(line, failures):
    client = Client(failures)
    line.record(*range(1, 401))
    tracker = line.tracker(client)
    tracker.drain(20)
    assert set(client.steps()) == set(range(1, 401))


def test_drain_waits_for_records_written_while_an_upload_was_under_way(line, monkeypatch):
    monkeypatch.setattr(
        "trainer.tracking.tracker.POLL_SECONDS", 0.5
    )  # time to see that drain did not wait for the next round
    client = Client()
    client.go_on.clear()
    line.record(1)
    tracker = line.tracker(client)
    assert client.entered.wait(20)
    line.record(2)
    threading.Timer(0.1, client.go_on.set).start()
    tracker.drain(20)
    assert client.steps() == [1, 2]


def test_finishing_survives_a_server_that_is_gone(line):
    tracker = line.tracker(Client(ending=ConnectionError("gone")))
    tracker.finish("FINISHED", 20)
    assert str(tracker.error) == "gone"


def test_finishing_sets_the_status(line):
    client = Client()
    line.record(1)
    line.tracker(client).finish("FAILED", 20)
    assert (client.status, client.steps()) == ("FAILED", [1])


def test_evaluation_metrics_are_tied_to_model_and_data():
    seen = []

    class Recorder:
        def log_batch(self, run_id, metrics):
            seen.extend(metrics)

    evaluated = Evaluated(
        {"vlb_bpd": Score(2.5, 0.1)},
        samples=1437,
        extractors={"classifier": ExtractorUsed("ab", 0.9)},
        frechet_at_nfe={"frechet_classifier": (CurvePoint(5, 9.0), CurvePoint(20, 4.0, 0.5))},
    )
    recorder: Any = Recorder()
    log_evaluation(recorder, "run", "model", INFO, 7, evaluated, evaluated.metrics())
    curve = [(m.step, m.value) for m in seen if m.key == "frechet_classifier_at_nfe"]
    assert curve == [(5, 9.0), (20, 4.0)]
    seen = [m for m in seen if m.key != "frechet_classifier_at_nfe"]
    accuracy = {"extractors.classifier.heldout_accuracy": 0.9}
    assert {m.key: m.value for m in seen} == {"vlb_bpd": 2.5, "vlb_bpd_se": 0.1} | accuracy
    assert {(m.step, m.model_id, m.dataset_name, m.dataset_digest, m.run_id) for m in seen} == {
        (7, "model", "digits", "ab" * 16, "run")
    }


def test_flatten_joins_paths():
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": None}) == {"a.b.c": 1, "a.d": [1], "e": None}


def test_a_checkpoints_scores_and_samples_are_at_its_step(store, tmp_path):
    """Recorded out of order between training's records, uploaded once."""
    folder, client = store
    line = Line(tmp_path, f"sqlite:///{folder}/mlflow.db", "alongside")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "samples.png")
    line.record(1, 2, 3)
    line.journal.append(CheckpointEvaluated(step=2, scores={"vlb_bpd": 4.5}, samples_png=f"{tmp_path}/samples.png"))
    line.record(4)
    line.journal.append(CheckpointEvaluated(step=1, scores={"vlb_bpd": 5.0}))
    tracker = Tracker(line.config, line.paths, INFO, line.journal)
    tracker.start()
    tracker.drain(20)
    tracker.finish("FINISHED", 20)
    run_id = str(tracker.run_id)
    points = client.get_metric_history(run_id, "vlb_bpd")
    assert sorted((each.step, each.value) for each in points) == [(1, 5.0), (2, 4.5)]
    assert [each.step for each in client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4]
    assert len([each for each in client.list_artifacts(run_id, "images") if each.path.endswith(".png")]) == 1
