"""The driver ends with one line where ranks have left their stacks, and with nothing where they have not."""

import time
from pathlib import Path

from trainer.driver import hang_watch
from trainer.driver.hang_watch import HangWatch
from trainer.errors import ClusterLostError
from trainer.run.paths import RunPaths


def watched(tmp_path: Path, monkeypatch) -> tuple[RunPaths, list[Exception], HangWatch]:
    monkeypatch.setattr(hang_watch, "INTERVAL_S", 0.02)
    monkeypatch.setattr(hang_watch, "SETTLE_S", 0.3)
    paths, failures = RunPaths(tmp_path), list[Exception]()
    paths.attempt.write_text("attempt-2")
    for attempt in ("attempt-1", "attempt-2"):
        paths.stacks(attempt).mkdir(parents=True)
        for rank in range(2):
            (paths.stacks(attempt) / f"rank-{rank}.txt").write_text("Timeout" if attempt == "attempt-1" else "")
    watch = HangWatch(paths, failures.append)
    watch.start()
    return paths, failures, watch


def test_stacks_of_the_attempt_in_charge_end_the_driver(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    time.sleep(0.2)
    assert failures == []  # those of an earlier attempt are old
    (paths.stacks("attempt-2") / "rank-1.txt").write_text("Timeout (0:05:00)!\nThread 0x1 (most recent call first):\n")
    watch.join(10)
    [failure] = failures
    assert isinstance(failure, ClusterLostError)
    assert str(failure) == (
        f"no step has ended for 0:05:00 (h:mm:ss); what 1 of 2 ranks were doing: {paths.stacks('attempt-2')}"
    )


def test_a_watch_that_is_closed_sees_nothing_more(tmp_path, monkeypatch):
    paths, failures, watch = watched(tmp_path, monkeypatch)
    watch.close()
    (paths.stacks("attempt-2") / "rank-0.txt").write_text("Timeout (0:05:00)!\n")
    time.sleep(0.1)
    assert failures == []
