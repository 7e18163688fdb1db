"""How often training is tried again: as long as it gets further."""

import json

import pytest
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from trainer.config.run_config import RunConfig
from trainer.driver import ray_train as module
from trainer.driver.ray_train import MAX_FAILURES, fit
from trainer.run.journal import Journal, Warned
from trainer.run.manifest import FORMAT_VERSION, MANIFEST, with_digest
from trainer.run.paths import RunPaths


class Attempts:
    """Stands for Ray Train: each attempt leaves the checkpoints that it is told to, and then fails or does not."""

    def __init__(self, paths, outcomes):
        self.paths, self.outcomes, self.made = paths, list(outcomes), 0

    def __call__(self, *_):
        step, error = self.outcomes[self.made]
        self.made += 1
        if step:
            folder = self.paths.checkpoints / f"step-{step:08d}"
            folder.mkdir(parents=True)
            manifest = {"format_version": FORMAT_VERSION, "step": step, "files": {}}
            (folder / MANIFEST).write_text(json.dumps(with_digest(manifest)))
        if error:
            raise error


LOST = WorkerGroupError("a worker died", {0: RuntimeError("a worker died")})
GONE = ControllerError(RuntimeError("a node is gone"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()

    def call(outcomes):
        attempts = Attempts(paths, outcomes)
        monkeypatch.setattr(module, "_attempt", attempts)
        try:
            fit(RunConfig(), paths, tmp_path, "cpu")
        except TrainingFailedError as error:
            return attempts.made, error
        return attempts.made, None

    return paths, call


def test_training_that_ends_is_not_tried_again(run):
    assert run[1]([(5, None)]) == (1, None)


def test_a_lost_worker_is_forgiven_as_long_as_there_is_a_newer_checkpoint(run):
    paths, call = run
    assert call([(step, LOST) for step in range(1, 9)] + [(None, None)]) == (9, None)
    warnings = [record.text for record in Journal(paths.journal).records(Warned)]
    assert warnings == ["training goes on from its checkpoint after: a worker died"] * 8


def test_without_a_newer_checkpoint_the_failure_is_told(run):
    assert run[1]([(1, LOST), (None, LOST)]) == (2, LOST)


def test_a_node_that_goes_while_the_gang_starts_is_tried_again_a_few_times(run):
    _, call = run
    assert call([(None, GONE)] * MAX_FAILURES + [(None, None)]) == (MAX_FAILURES + 1, None)
    assert call([(None, GONE)] * (MAX_FAILURES + 1)) == (MAX_FAILURES + 1, GONE)
