"""What a run's progress looks like in a file: every line once, however many records arrive together."""

import time
from pathlib import Path

import pytest

from trainer.driver.progress import ProgressView
from trainer.run.journal import Journal, Metrics, Started


def test_records_that_arrive_together_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    journal = Journal(tmp_path / "journal.jsonl")
    with ProgressView(journal):
        journal.append(Started(step=0, steps=2, world_size=1))
        journal.append(Metrics(step=1, values={"loss": 1.0, "images_per_second": 10.0}))
        journal.append(Metrics(step=2, values={"loss": 0.5, "images_per_second": 10.0}))
    assert capsys.readouterr().out.splitlines() == [
        "  training 2 steps on 1 workers",
        "  step 1/2 (50%)  loss 1.0000  10 images/s",
        "  step 2/2 (100%)  loss 0.5000  10 images/s",
    ]


def test_durations_are_by_the_monotonic_clock(tmp_path: Path):
    """The workers' clocks may be days off, or be set back during the run."""
    journal = Journal(tmp_path / "journal.jsonl")
    began = time.monotonic()
    with ProgressView(journal) as view:
        assert view.training_since is None
        journal.append(Started(step=0, steps=2, world_size=1, time_ms=172_761_000))
    first = view.training_since
    assert first is not None
    assert began <= first <= time.monotonic()
