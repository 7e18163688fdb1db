"""A rank that hangs leaves its stacks, wherever it hangs; one that is slow leaves nothing."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from trainer.worker.watchdog import WRITING_S, Watchdog

HANG = """
import ctypes, sys, threading, time
from pathlib import Path
from trainer.worker.watchdog import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), floor_s=0.3, medians=20)
def take_steps():
    for _ in range(4):
        time.sleep(0.005)
        watchdog.step_ended()
def hang_in_python():
    threading.Event().wait(1.5)
def hang_with_the_lock():
    ctypes.PyDLL(None).usleep(1_500_000)
def fine():
    pass
take_steps()
globals()[sys.argv[2]]()
watchdog.close()
"""


@pytest.mark.parametrize(
    ("where", "shown"), [("hang_in_python", "in wait"), ("hang_with_the_lock", "hang_with_the_lock")]
)
def test_stacks_are_written_where_no_step_ends(tmp_path, where, shown):
    file = tmp_path / "stacks" / "rank-0.txt"
    subprocess.run([sys.executable, "-c", HANG, str(file), where], cwd=ROOT, check=True, timeout=60)
    text = file.read_text()
    assert text.startswith("Timeout (0:00:00.3")
    assert f"in {where}" in text
    assert shown in text


def test_a_run_that_ends_well_leaves_no_file(tmp_path):
    file = tmp_path / "stacks" / "attempt-1" / "rank-0.txt"
    subprocess.run([sys.executable, "-c", HANG, str(file), "fine"], cwd=ROOT, check=True, timeout=60)
    assert list((tmp_path / "stacks").iterdir()) == []


def test_the_patience_is_so_many_medians_and_at_least_the_floor(tmp_path, monkeypatch):
    now, armed = [0.0], []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, file: armed.append(seconds))
    watchdog = Watchdog(tmp_path / "rank-0.txt", floor_s=10, medians=20, clock=lambda: now[0])

    def step(seconds: float, writing: bool = False) -> None:
        now[0] += seconds
        watchdog.step_ended(writing)

    step(500.0)  # compiles
    assert armed == []
    step(0.1)
    assert armed == [10]
    for _ in range(20):
        step(0.1)
    assert armed == [10, 10]  # not at every step
    for _ in range(50):
        step(3.0)
    assert armed[-1] == 60
    step(3.0, writing=True)
    assert armed[-1] == WRITING_S
    step(3.0)
    assert armed[-1] == 60
    watchdog.close()
    watchdog.close()
