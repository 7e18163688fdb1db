"""Panels drawn: all of a report on one page, or one of them as a drawing inside an HTML page.

Both are drawn, and saved, under the settings of `theme.DRAWING`.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from trainer.evaluate.report.layout import CAPTION, MARGIN, WIDTHS, Box, page
from trainer.evaluate.report.panels import Panel
from trainer.evaluate.report.theme import (
    HEAD,
    HEADING,
    LIKELIHOOD,
    PAPER,
    QUIET,
    SAMPLE,
    SMALL,
    TITLE,
    with_variables,
)  # fmt: skip

LINE = 1.35 / 72  # inches of a line of text of one point
LEGEND = 0.21  # inches of a legend
PASSES = 4  # until the labels, which depend on the size of the axes, are settled
SINGLE = (4.3, 2.7)  # inches of a drawing, at most
EDGE = 0.03  # inches around it, for the rims of letters


def whole(views: Sequence[Sequence[Panel]], names: Sequence[str], title: str, notes: str) -> Figure:
    """All panels on one page.

    Args:
        views: the panels of each.
        names: of the views.
        title: of the page.
        notes: what holds for all panels.
    """
    shapes = [[panel.shape for panel in view] for view in views]
    layout = page(shapes)
    width = layout.width - 2 * MARGIN
    head, small = wrapped(title, width, HEAD), wrapped(notes, width, SMALL)
    header = MARGIN + LINE * (HEAD * len(head) + SMALL * len(small)) + 0.18
    layout = layout.below(header)
    figure = _figure(layout.width, layout.height)
    _write(figure, MARGIN, MARGIN, head, fontsize=HEAD, fontweight="bold")
    _write(figure, MARGIN, MARGIN + LINE * HEAD * len(head) + 0.05, small, fontsize=SMALL, color=QUIET)
    for view, boxes, name, heading, colour in zip(
        views, layout.boxes, names, layout.headings, (LIKELIHOOD, SAMPLE), strict=True
    ):
        if heading:
            _head(figure, heading, name, colour)
        for panel, box in zip(view, boxes, strict=True):
            _captioned(figure, panel, box)
    return figure


def drawing(panel: Panel, prefix: str) -> str:
    """A plot as SVG for a page whose style gives its colours; the prefix keeps its identifiers apart from others'."""
    assert panel.draw is not None
    width, height = SINGLE[0], min(SINGLE[1], panel.tall - CAPTION)
    figure = _figure(width, height)
    axes = figure.add_axes((0.2, 0.2, 0.6, 0.6))
    panel.draw(axes)
    _fit(axes, Box(EDGE, EDGE, width - 2 * EDGE, height - 2 * EDGE))
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', r"<svg \1>", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1{prefix}-", svg).replace("xlink:href", "href")
    return with_variables(re.sub(r">\s+<", "><", svg).strip())


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _head(figure: Figure, box: Box, name: str, colour: str) -> None:
    _write(figure, box.x, box.y + 0.02, [name], fontsize=HEADING, fontweight="bold", color=colour)
    width, height = figure.get_size_inches()
    y = 1 - (box.y + 0.29) / height
    figure.add_artist(Line2D([box.x / width, (box.x + box.width) / width], [y, y], color=colour, lw=1.2))


def _captioned(figure: Figure, panel: Panel, box: Box) -> None:
    title = _first_line(panel.title, box.width, TITLE)
    _write(figure, box.x, box.y, [title], fontsize=TITLE, fontweight="bold")
    note = _first_line(panel.note, box.width, SMALL)
    _write(figure, box.x, box.y + LINE * TITLE, [note], fontsize=SMALL, color=QUIET)
    inner = Box(box.x, box.y + CAPTION, box.width, box.height - CAPTION)
    axes = figure.add_axes(_fractions(figure, inner))
    if panel.picture:
        axes.imshow(imread(panel.picture), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_axis_off()
    elif panel.draw:
        panel.draw(axes)
        _fit(axes, inner)


def _fractions(figure: Figure, box: Box) -> tuple[float, float, float, float]:
    width, height = figure.get_size_inches()
    return box.x / width, 1 - (box.y + box.height) / height, box.width / width, box.height / height


def _fit(axes: Axes, box: Box) -> None:
    """Place axes so that they fill the box together with all their labels, their legend along its upper edge."""
    figure: Any = axes.figure
    legend = axes.get_legend()
    if legend:
        legend.set_in_layout(False)
        box = Box(box.x, box.y + LEGEND, box.width, box.height - LEGEND)
    left, bottom, width, height = _fractions(figure, box)
    for _ in range(PASSES):
        drawn: Any = axes.get_tightbbox(figure.canvas.get_renderer())
        around = drawn.transformed(figure.transFigure.inverted())
        now = axes.get_position()
        x0, y0 = now.x0 + left - around.x0, now.y0 + bottom - around.y0
        x1, y1 = now.x1 + left + width - around.x1, now.y1 + bottom + height - around.y1
        axes.set_position((x0, y0, max(x1 - x0, 0.02), max(y1 - y0, 0.02)))
    if legend:
        legend.set_bbox_to_anchor((left, bottom + height), transform=figure.transFigure)


def _write(figure: Figure, x: float, y: float, lines: Sequence[str], **style: Any) -> None:  # noqa: ANN401 - of Text
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, "\n".join(lines), va="top", **style)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines that are no wider than so many inches in letters of this size; a word that is too long is broken."""
    lines, line = list[str](), ""
    for word in text.split():
        for part in _pieces(word, width, size):
            if line and _wide(f"{line} {part}", size) > width:
                lines.append(line)
                line = part
            else:
                line = f"{line} {part}".strip()
    return [*lines, line]


def _first_line(text: str, width: float, size: float) -> str:
    first, *others = wrapped(text, width, size)
    return f"{first[:-1]}…" if others else first


def _pieces(word: str, width: float, size: float) -> list[str]:
    if _wide(word, size) <= width:
        return [word]
    pieces = [""]
    for letter in word:
        if pieces[-1] and _wide(pieces[-1] + letter, size) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _wide(text: str, size: float) -> float:
    """Inches of a line of text, as if it were bold."""
    figure = _figure(WIDTHS[-1], 1.0)
    box = figure.text(0, 0, text, fontsize=size, fontweight="bold").get_window_extent()
    return box.width / figure.dpi
