"""Before the number of workers changes, those at work checkpoint; nobody is waited for in vain."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from trainer.driver.elastic import CheckpointBeforeResize
from trainer.run.journal import Journal, Started, Stopped
from trainer.run.paths import RunPaths

GRACE_S = 1.0


@pytest.fixture
def paths(tmp_path):
    made = RunPaths(tmp_path / "run")
    made.root.mkdir()
    Journal(made.journal).append(Started(step=0, steps=9, world_size=1))  # of an earlier attempt
    return made


def resize(resizing: CheckpointBeforeResize, workers: int) -> float:
    """Ray's call; how long it took."""
    began = time.monotonic()
    resizing.before_controller_execute_resize_decision(SimpleNamespace(num_workers=workers))
    return time.monotonic() - began


def test_nobody_is_asked_before_the_first_workers_begin(paths):
    assert resize(CheckpointBeforeResize(paths, "attempt-2", GRACE_S), 2) < GRACE_S / 2
    assert not paths.preempt.exists()


def test_workers_are_asked_for_a_checkpoint_and_the_sign_is_gone_for_those_after_them(paths):
    resizing, journal, requests = CheckpointBeforeResize(paths, "attempt-2", 30.0), Journal(paths.journal), []

    def work() -> None:
        while not paths.preempt.exists():
            time.sleep(0.01)
        requests.append(json.loads(paths.preempt.read_text()))
        journal.append(Stopped(step=7, text="asked"))

    resize(resizing, 2)
    journal.append(Started(step=0, steps=9, world_size=1))
    worker = threading.Thread(target=work)
    worker.start()
    assert resize(resizing, 3) < 10
    worker.join()
    assert requests == [{"attempt": "attempt-2", "reason": "going on with 3 workers"}]
    assert not paths.preempt.exists()


def test_after_a_failure_nobody_is_waited_for_but_at_the_next_change_they_are(paths):
    resizing, journal = CheckpointBeforeResize(paths, "attempt-2", GRACE_S), Journal(paths.journal)
    journal.append(Started(step=0, steps=9, world_size=1))
    resizing.before_controller_execute_failure_decision("retry")
    assert resize(resizing, 1) < GRACE_S / 2
    journal.append(Started(step=0, steps=9, world_size=1))
    assert resize(resizing, 2) >= GRACE_S


def test_workers_that_do_not_answer_are_waited_for_no_longer_than_they_are_given(paths):
    resizing = CheckpointBeforeResize(paths, "attempt-2", GRACE_S)
    Journal(paths.journal).append(Started(step=0, steps=9, world_size=1))
    assert GRACE_S <= resize(resizing, 2) < 3 * GRACE_S
    assert not paths.preempt.exists()
