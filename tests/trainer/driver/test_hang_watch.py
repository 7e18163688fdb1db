"""The driver ends with one line where ranks have left their stacks, and with nothing where they have not."""

import time
from pathlib import Path

from trainer.driver import hang_watch
from trainer.driver.hang_watch import HangWatch
from trainer.errors import HungError, RunFailedError
from trainer.run.paths import RunPaths


def watched(tmp_path: Path, monkeypatch) -> tuple[RunPaths, list[Exception], HangWatch]:
    monkeypatch.setattr(hang_watch, "INTERVAL_S", 0.02)
    monkeypatch.setattr(hang_watch, "SETTLE_S", 0.3)
    paths, failures = RunPaths(tmp_path), list[Exception]()
    paths.attempt.write_text("attempt-1")
    for attempt in ("attempt-1", "attempt-2"):
        paths.stacks(attempt).mkdir(parents=True)
        for rank in range(2):
            (paths.stacks(attempt) / f"rank-{rank}.txt").write_text("Timeout" if attempt == "attempt-1" else "")
    watch = HangWatch(paths, failures.append)
    watch.start()
    time.sleep(0.1)
    assert failures == []  # of an earlier attempt
    paths.attempt.write_text("attempt-2")
    return paths, failures, watch


def test_stacks_of_the_attempt_in_charge_end_the_driver(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    time.sleep(0.2)
    assert failures == []
    (paths.stacks("attempt-2") / "rank-1.txt").write_text("Timeout (0:05:00)!\nThread 0x1 (most recent call first):\n")
    watch.join(10)
    [failure] = failures
    assert isinstance(failure, HungError)
    assert str(failure) == (
        f"no step has ended for 0:05:00 (h:mm:ss); the stacks of 1 of 2 ranks: {paths.stacks('attempt-2')}"
    )


def test_a_watch_that_is_closed_sees_nothing_more(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    watch.close()
    (paths.stacks("attempt-2") / "rank-0.txt").write_text("Timeout (0:05:00)!\n")
    time.sleep(0.1)
    assert failures == []


def test_a_step_that_was_only_slow_is_no_hang(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    file = paths.stacks("attempt-2") / "rank-0.txt"
    file.write_text("Timeout (0:05:00)!\n")
    time.sleep(0.1)
    file.write_text("")
    time.sleep(0.5)
    watch.close()
    assert failures == []


def test_hangs_without_a_newer_checkpoint_end_the_run_at_last(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    for attempt, step in (("attempt-01", 0), ("attempt-02", 0), ("attempt-03", 50)):
        paths.stacks(attempt).mkdir(parents=True)
        (paths.stacks(attempt) / hang_watch.REACHED).write_text(str(step))
    (paths.stacks("attempt-2") / "rank-0.txt").write_text("Timeout (0:05:00)!\n")
    watch.join(10)
    [failure] = failures
    assert type(failure) is RunFailedError
    assert str(failure).endswith("; 3 attempts have hung after the checkpoint of step 0")
