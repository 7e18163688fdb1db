"""The report of a sweep: a table of scores and a heat map.

Trials are compared by evaluation scores on held-out images, never by a training loss; scores.py says how.
"""

from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tuning.scores import FRECHET, INDISTINGUISHABLE_SE, METRICS, STATE_LABELS, VLB, Row, baseline_scores, number, rows
from tuning.space import short_names, value_text
from tuning.sweep import Sweep


def report(sweep: Sweep) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "sweep": sweep.name,
        "directory": str(sweep.root),
        "digest": sweep.digest,
        "scale": {FRECHET: baseline_scores(sweep)},
        "rows": rows(sweep),
    }


def show(sweep: Sweep, console: Console) -> None:
    """Print the table and its notes."""
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
        values = [value_text(row["settings"][path]) for path in sweep.space]
        shown.add_row(*values, _score(row, VLB), _score(row, FRECHET), STATE_LABELS[row["state"]])
    return shown


def _score(row: Row, name: str) -> Text:
    mark = "* " if name in row["best"] else "≈ " if name == VLB and row["indistinguishable_from_best"] else ""
    return Text(mark + number(row, name), style="bold" if name in row["best"] else "")


def notes(sweep: Sweep, table: list[Row]) -> list[str]:
    """Notes below the table: its symbols, the baselines, unequal steps and failures."""
    lines = ["lower is better in both columns; * marks the best"] if any(row["best"] for row in table) else []
    if any(row["indistinguishable_from_best"] for row in table):
        lines.append(
            f"≈ within {INDISTINGUISHABLE_SE:g} standard errors of the best {VLB}: not distinguishable from it"
        )
    baselines = baseline_scores(sweep)
    if baselines:
        named = {"heldout": "held-out images", "gaussian": "a Gaussian", "noise": "noise"}
        lines.append(f"{FRECHET} of {', '.join(f'{named[name]} {value:.4g}' for name, value in baselines.items())}")
    steps = sorted({row["step"] for row in table if row["step"] is not None})
    if len(steps) > 1:
        lines.append(f"not comparable: trials were trained for {', '.join(map(str, steps))} steps")
    return lines + [f"failed: {row['name']}: {row['reason']}" for row in table if row["state"] == "failed"]


def draw(sweep: Sweep, path: Path) -> Path | None:
    """Write the heat map as a PNG file; None, and no file, if there is no score to draw."""
    table = rows(sweep)
    shown = [name for name in METRICS if any(row[name] is not None for row in table)]
    if not shown:
        return None
    from tuning.heatmap import save

    save(path, sweep, table, shown)
    return path
