"""Which checkpoints are evaluated beside training, and with which of the metrics."""

import json
import threading
from unittest.mock import MagicMock

import pytest

from trainer.config.evaluation import EvaluationConfig
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.config.training import TrainingConfig
from trainer.data.dataset import Dataset
from trainer.data.manifest import DatasetInfo
from trainer.driver.background_evaluation import BackgroundEvaluation, intermediate_config
from trainer.driver.parts import Driver
from trainer.errors import RunFailedError
from trainer.evaluate.evaluation import EvaluationStoppedError
from trainer.run.journal import Journal, Warned
from trainer.run.manifest import MANIFEST, step_folder
from trainer.run.paths import RunPaths
from trainer.runtime.stop import Stop


@pytest.fixture
def background(tmp_path):
    settings = RunSettings(storage=str(tmp_path), name="mine", checkpoint_every=50, evaluate_every=100)
    config = RunConfig(run=settings, training=TrainingConfig(steps=400))
    paths = RunPaths.of(config)
    paths.checkpoints.mkdir(parents=True)
    dataset = Dataset(tmp_path, DatasetInfo("digits", "ab" * 32, (1, 8, 8), 1437, 360, 10))
    return BackgroundEvaluation(config, paths, dataset, Journal(paths.journal))


def checkpoint(background, *steps):
    for step in steps:
        folder = step_folder(background._paths.checkpoints, step)
        folder.mkdir()
        (folder / MANIFEST).write_text("{}")


def test_the_newest_multiple_comes_first_and_the_last_step_is_left_to_the_end(background):
    assert background._next() is None
    checkpoint(background, 50)
    assert background._next() is None
    checkpoint(background, 100, 150, 200, 250, 400)
    assert background._next() == 200
    done = background._paths.evaluation(200)
    done.mkdir(parents=True)
    (done / "evaluation.json").write_text("{}")
    assert background._next() == 100


def test_a_checkpoint_that_cannot_be_read_is_a_warning_and_is_not_tried_again(background):
    checkpoint(background, 100)
    background.start()
    while not background._given_up:
        background.join(0.01)
    background.close()
    assert not background.is_alive()
    (record,) = background._journal.records(Warned)
    assert record.step == 100
    assert "no evaluation of step 100: its checkpoint cannot be read" in record.text


def test_one_that_is_abandoned_ends_at_once_and_says_nothing(background, monkeypatch):
    """What a failed trial of a sweep leaves in a worker that the next trial uses again: no thread of its own."""
    begun = threading.Event()

    def evaluate(step):
        begun.set()
        assert background._abandoned.wait(30)
        raise EvaluationStoppedError("scoring: stopped")

    monkeypatch.setattr(background, "_evaluate", evaluate)
    checkpoint(background, 100, 200)
    background.start()
    assert begun.wait(30)
    background.abandon()
    background.join(30)
    assert not background.is_alive()
    assert list(background._journal.read()) == []


def test_a_run_that_fails_leaves_no_thread_behind(background, monkeypatch):
    monkeypatch.setattr("trainer.driver.background_evaluation.BackgroundEvaluation", lambda *_: background)
    driver = Driver(
        background._config, background._paths, background._dataset, background._journal, MagicMock(), Stop(), 0
    )

    def train():
        with driver._background_evaluation():
            assert background.is_alive()
            raise RunFailedError("training: lost")

    with pytest.raises(RunFailedError, match="training: lost"):
        train()
    assert not background.is_alive()


def test_beside_training_one_set_of_samples_and_the_bounds_are_measured():
    config = EvaluationConfig(metrics=("nll", "vlb", "kid", "denoising"), seeds=3, nfe_curve=(5,), samples=100)
    intermediate = intermediate_config(config)
    assert intermediate.metrics == ("vlb", "kid")
    assert (intermediate.seeds, intermediate.nfe_curve, intermediate.samples) == (1, (), 100)
    assert intermediate_config(EvaluationConfig(metrics=("nll",))).metrics == ("vlb",)
    assert json.loads(intermediate.model_dump_json())["solver"] == json.loads(config.model_dump_json())["solver"]


def test_what_is_evaluated_are_checkpoints():
    with pytest.raises(ValueError, match="allowed: a multiple of checkpoint_every = 50, or null"):
        RunSettings(checkpoint_every=50, evaluate_every=120)
