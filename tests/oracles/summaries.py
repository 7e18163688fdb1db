"""A run's summary as a finished run leaves it, for tests that only care about some of it."""

from dataclasses import replace
from typing import Any

from trainer.files import write_json
from trainer.run.paths import RunPaths
from trainer.run.summary import Evaluated, Registration, RunSummary, Score

SUMMARY = RunSummary(
    name="mine",
    experiment="digits",
    step=100,
    package_sha256="a" * 64,
    config_sha256="b" * 64,
    method_sha256="c" * 64,
    dataset_fingerprint="d" * 64,
    evaluated=Evaluated({"vlb_bpd": Score(4.5, 0.02)}),
    images_per_second=1000.0,
    seconds={"startup": 9.0, "training": 60.0, "evaluation": 20.0},
    registration=Registration(run_id="e" * 32, model_uri="models:/m-1", recorded=True),
)


def finish(paths: RunPaths, **changes: Any) -> RunSummary:
    """Write the summary with some fields changed."""
    summary = replace(SUMMARY, **changes)
    paths.results.mkdir(parents=True, exist_ok=True)
    write_json(paths.summary, summary.to_json())
    return summary
