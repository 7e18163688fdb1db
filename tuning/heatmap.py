"""Heat map of a sweep's scores: a panel for each metric, a cell for each trial.

Rows are the values of the first varied path, columns the combinations of the others. Each panel has its own colours.
"""

import itertools
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tuning.scores import METRICS, STATE_LABELS, Row, number
from tuning.space import short_names, value_text
from tuning.sweep import Sweep

COLOURS = colormaps["YlGnBu_r"].resampled(256)
INK, PAPER, GREY = "#1b1f24", "#ffffff", "#ececec"
CELL_WIDTH, CELL_HEIGHT, MARGIN, MIN_WIDTH = 1.75, 0.95, 1.3, 2.2  # inches
DPI = 110
MIN_RATIO_FOR_LOG_COLOURS = 10.0


def save(path: Path, sweep: Sweep, table: list[Row], metrics: list[str]) -> None:
    """Write the heat map of `metrics` as a PNG file; `table` has the rows of `scores.rows`."""
    first, *others = sweep.space
    columns = list(itertools.product(*(sweep.space[other] for other in others)))
    width = max(len(columns) * CELL_WIDTH, MIN_WIDTH) + MARGIN
    height = len(sweep.space[first]) * CELL_HEIGHT + MARGIN + 0.2 * len(others)
    beside = width * len(metrics) <= 2 * max(height, 7)
    shape = (1, len(metrics)) if beside else (len(metrics), 1)
    figure = Figure(figsize=(width * shape[1], height * shape[0] + 0.7), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.04)  # type: ignore[union-attr]
    close = any(row["indistinguishable_from_best"] for row in table)
    legend = "lower is better; framed: the best" + ("; ≈ not distinguishable from it" if close else "")
    figure.suptitle(f"sweep {sweep.name}\n{legend}", color=INK, fontsize=11)
    panels = figure.subplots(*shape, squeeze=False)
    for axes, metric in zip(panels.flat, metrics, strict=True):
        _panel(axes, sweep, table, metric)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")


def _panel(axes: Axes, sweep: Sweep, table: list[Row], metric: str) -> None:
    first, *others = sweep.space
    columns = list(itertools.product(*(sweep.space[other] for other in others)))
    scores = [row[metric] for row in table if row[metric] is not None]
    norm = _norm(min(scores), max(scores))
    for index, row in enumerate(table):  # the grid's order: the first path changes slowest
        _cell(axes, index % len(columns), index // len(columns), row, metric, norm)
    names = short_names(sweep.space)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(sweep.space[first]), 0)
    axes.set_xticks([i + 0.5 for i in range(len(columns))], ["\n".join(map(value_text, column)) for column in columns])
    axes.set_yticks([i + 0.5 for i in range(len(sweep.space[first]))], [value_text(v) for v in sweep.space[first]])
    axes.set_xlabel("\n".join(names[other] for other in others), color=INK, fontweight="bold")
    axes.set_ylabel(names[first], color=INK, fontweight="bold")
    axes.set_title(f"{metric}\n{METRICS[metric]}", color=INK, fontsize=10.5)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _norm(lowest: float, highest: float) -> Normalize:
    """Linear colours, or logarithmic ones where the scores span more than MIN_RATIO_FOR_LOG_COLOURS."""
    if lowest > 0 and highest > MIN_RATIO_FOR_LOG_COLOURS * lowest:
        return LogNorm(lowest, highest)
    return Normalize(lowest, highest) if highest > lowest else Normalize(lowest - 1, highest + 1)


def _cell(axes: Axes, x: int, y: int, row: Row, metric: str, norm: Normalize) -> None:
    box: dict[str, Any] = {"linewidth": 2, "edgecolor": PAPER}
    if row[metric] is None:
        word = STATE_LABELS[row["state"]] if row["state"] != "done" else "not measured"
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=GREY, hatch="///", **{**box, "edgecolor": "#d2d2d2"}))
        axes.text(x + 0.5, y + 0.5, word, ha="center", va="center", color="#5a5f66", fontsize=11,
                  bbox={"facecolor": GREY, "edgecolor": "none", "pad": 2})  # fmt: skip
        return
    # text would be hard to read on the ends of the colour map
    colour = COLOURS(0.15 + 0.75 * float(norm(row[metric])))
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, **box))
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    value, separator, error = number(row, metric).partition(" ± ")
    best = metric in row["best"]
    ink = INK if luminance > 0.45 else PAPER
    close = "≈ " if separator and row["indistinguishable_from_best"] else ""
    text = f"{close}{value}\n± {error}" if separator else value
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=11.5,
              fontweight="bold" if best else "normal", linespacing=1.4)  # fmt: skip
    if best:
        axes.add_patch(Rectangle((x + 0.04, y + 0.05), 0.92, 0.9, fill=False, edgecolor=ink, linewidth=2))
