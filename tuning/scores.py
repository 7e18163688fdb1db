"""A sweep's trials as rows of scores, and which of them are best.

Trials are compared by evaluation scores on held-out images, never by a training loss. The standard error of a
difference is taken as sqrt(se_1^2 + se_2^2). Trials are scored on the same images with the same noise, so the
true standard error is usually smaller: calling two trials indistinguishable is conservative.
"""

import math
from typing import Any

from trainer.run.identity import read_summary
from trainer.run.paths import RunPaths
from tuning.space import Trial
from tuning.sweep import Sweep

VLB, VLB_SE, FRECHET = "vlb_bpd", "vlb_bpd_se", "frechet_classifier"
METRICS = {VLB: "bits/dim", FRECHET: "squared Frechet distance"}
BASELINES = ("heldout", "gaussian", "noise")
INDISTINGUISHABLE_SE = 2.0
STATE_LABELS = {"new": "not run", "resumable": "interrupted", "failed": "failed", "done": "done"}
Row = dict[str, Any]


def rows(sweep: Sweep) -> list[Row]:
    """One row for each trial, in the sweep's order: settings, state, scores, and whether it is the best."""
    failures, data = sweep.failures(), sweep.dataset_fingerprint
    result = [_row(trial, paths, failures.get(trial.name), data) for trial, paths in sweep.paths()]
    for row in result:
        row["best"] = [name for name in METRICS if row[name] is not None and row[name] == _lowest(result, name)]
    best = next((row for row in result if VLB in row["best"]), None)
    for row in result:
        row["indistinguishable_from_best"] = best is not None and row is not best and _close(row, best)
    return result


def _row(trial: Trial, paths: RunPaths, failure: str | None, data: str | None) -> Row:
    summary = read_summary(paths)
    if summary is not None and data not in (None, summary.dataset_fingerprint):
        failure = f"scored on other data ({summary.dataset_fingerprint[:8]}) than the sweep's ({data[:8]})"
        summary = None
    done = summary is not None and summary.step >= trial.config.training.steps
    begun = "resumable" if paths.identity.is_file() else "new"
    vlb, frechet = (summary.evaluated.score(name) if summary and done else None for name in (VLB, FRECHET))
    return {
        "name": trial.name,
        "settings": trial.settings,
        "state": "done" if done else "failed" if failure else begun,
        "reason": None if done else failure,
        "step": summary.step if summary and done else None,
        VLB: None if vlb is None else vlb.value,
        VLB_SE: None if vlb is None else vlb.se,
        FRECHET: None if frechet is None else frechet.value,
        "run_id": summary.registration.run_id if summary and done else None,
    }


def _lowest(table: list[Row], name: str) -> float | None:
    return min((row[name] for row in table if row[name] is not None), default=None)


def _close(row: Row, best: Row) -> bool:
    """Whether vlb_bpd is within INDISTINGUISHABLE_SE standard errors of the difference from the best."""
    known = all(value is not None for value in (row[VLB], row[VLB_SE], best[VLB_SE]))
    return known and row[VLB] - best[VLB] <= INDISTINGUISHABLE_SE * math.hypot(row[VLB_SE], best[VLB_SE])


def baseline_scores(sweep: Sweep) -> dict[str, float]:
    """frechet_classifier of the baselines: held-out images, a fitted Gaussian, and uniform noise."""
    for _, paths in sweep.paths():
        summary = read_summary(paths)
        if summary and FRECHET in summary.evaluated.scores:
            baselines = {name: summary.evaluated.score(f"{FRECHET}_{name}") for name in BASELINES}
            return {name: score.value for name, score in baselines.items() if score is not None}
    return {}


def number(row: Row, name: str) -> str:
    """A score as text, with its standard error where it has one."""
    if row[name] is None:
        return "none" if row["state"] == "done" else "-"
    if name != VLB:
        return f"{row[name]:.4g}"
    return f"{row[VLB]:.3f}" + (f" ± {row[VLB_SE]:.3f}" if row[VLB_SE] is not None else "")
