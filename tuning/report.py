"""The scores of a sweep side by side. Trials are compared by what was measured on held-out images, never by a loss.

The standard error of a difference is taken as sqrt(se_1^2 + se_2^2). Trials are scored on the same images with the same
noise, so their differences are better known than that: the word `not distinguishable` is on the safe side.
"""

import math
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trainer import state
from trainer.paths import RunPaths
from tuning.space import Trial, short_names, spelled
from tuning.sweep import Sweep

VLB, VLB_SE, FRECHET = "vlb_bpd", "vlb_bpd_se", "frechet_classifier"
METRICS = {VLB: "bits/dim", FRECHET: "squared Frechet distance"}
SCALE = ("heldout", "gaussian", "noise")
CLOSE_SE = 2.0
WORDS = {"new": "not run", "resumable": "interrupted", "failed": "failed", "done": "done"}

Row = dict[str, Any]


def rows(sweep: Sweep) -> list[Row]:
    """One row a trial, in the sweep's order: settings, state, scores, and where it stands among the others."""
    failures = sweep.failures()
    result = [_row(trial, paths, failures.get(trial.name)) for trial, paths in sweep.paths()]
    for row in result:
        row["best"] = [name for name in METRICS if row[name] is not None and row[name] == _lowest(result, name)]
    best = next((row for row in result if VLB in row["best"]), None)
    for row in result:
        row["indistinguishable_from_best"] = best is not None and row is not best and _close(row, best)
    return result


def _row(trial: Trial, paths: RunPaths, failure: str | None) -> Row:
    summary = state.read_json(paths.summary) if paths.summary.is_file() else {}
    done = summary.get("step", 0) >= trial.config.training.steps
    begun = "resumable" if paths.identity.is_file() else "new"
    scores = {name: _finite(summary.get(name)) if done else None for name in (VLB, VLB_SE, FRECHET)}
    return {
        "name": trial.name,
        "settings": trial.settings,
        "state": "done" if done else "failed" if failure else begun,
        "reason": None if done else failure,
        "step": summary.get("step") if done else None,
        **scores,
        "run_id": summary.get("run_id") if done else None,
    }


def _finite(score: float | None) -> float | None:
    """A score that can be compared; one that is NaN or infinite is none."""
    return score if score is not None and math.isfinite(score) else None


def _lowest(table: list[Row], name: str) -> float | None:
    return min((row[name] for row in table if row[name] is not None), default=None)


def _close(row: Row, best: Row) -> bool:
    """Whether vlb_bpd is within 2 standard errors of the best."""
    known = all(value is not None for value in (row[VLB], row[VLB_SE], best[VLB_SE]))
    return known and row[VLB] - best[VLB] <= CLOSE_SE * math.hypot(row[VLB_SE], best[VLB_SE])


def scale(sweep: Sweep) -> dict[str, float]:
    """What frechet_classifier is for held-out images, a Gaussian of the right moments, and noise."""
    for _, paths in sweep.paths():
        summary = state.read_json(paths.summary) if paths.summary.is_file() else {}
        if FRECHET in summary:
            return {name: summary[f"{FRECHET}_{name}"] for name in SCALE if f"{FRECHET}_{name}" in summary}
    return {}


def report(sweep: Sweep) -> dict[str, Any]:
    """The report for machines."""
    return {
        "sweep": sweep.name,
        "directory": str(sweep.root),
        "digest": sweep.digest,
        "scale": {FRECHET: scale(sweep)},
        "rows": rows(sweep),
    }


def show(sweep: Sweep, console: Console) -> None:
    """Print the table and what it means."""
    table = rows(sweep)
    console.print()
    console.print(_table(sweep, table))
    for line in notes(sweep, table):
        console.print(f"  {line}", markup=False)


def _table(sweep: Sweep, table: list[Row]) -> RenderableType:
    shown = Table(title=f"sweep {sweep.name}", title_justify="left", title_style="bold")
    for name in short_names(sweep.space).values():
        shown.add_column(name)
    shown.add_column(f"{VLB} ± se", justify="right")
    shown.add_column(FRECHET, justify="right")
    shown.add_column("state")
    for row in table:
        values = [spelled(row["settings"][path]) for path in sweep.space]
        shown.add_row(*values, _score(row, VLB), _score(row, FRECHET), WORDS[row["state"]])
    return shown


def _score(row: Row, name: str) -> Text:
    mark = "* " if name in row["best"] else "≈ " if name == VLB and row["indistinguishable_from_best"] else ""
    return Text(mark + number(row, name), style="bold" if name in row["best"] else "")


def number(row: Row, name: str) -> str:
    """A score for people, with its standard error where it has one."""
    if row[name] is None:
        return "none" if row["state"] == "done" else "-"
    if name != VLB:
        return f"{row[name]:.4g}"
    return f"{row[VLB]:.3f}" + (f" ± {row[VLB_SE]:.3f}" if row[VLB_SE] is not None else "")


def notes(sweep: Sweep, table: list[Row]) -> list[str]:
    """What a reader has to know beside the table."""
    lines = ["lower is better in both columns; * the best"] if any(row["best"] for row in table) else []
    if any(row["indistinguishable_from_best"] for row in table):
        lines.append(f"≈ within {CLOSE_SE:g} standard errors of the best {VLB}: not distinguishable from it")
    measured = scale(sweep)
    if measured:
        named = {"heldout": "held-out images", "gaussian": "a Gaussian", "noise": "noise"}
        lines.append(f"{FRECHET} of {', '.join(f'{named[name]} {value:.4g}' for name, value in measured.items())}")
    steps = sorted({row["step"] for row in table if row["step"] is not None})
    if len(steps) > 1:
        lines.append(f"not alike: trials were trained for {', '.join(map(str, steps))} steps")
    return lines + [f"failed: {row['name']}: {row['reason']}" for row in table if row["state"] == "failed"]


def draw(sweep: Sweep, path: Path) -> Path | None:
    """The heat map as a PNG file; None while there is no score to draw."""
    table = rows(sweep)
    shown = [name for name in METRICS if any(row[name] is not None for row in table)]
    if not shown:
        return None
    from tuning.heatmap import save

    save(path, sweep, table, shown)
    return path
