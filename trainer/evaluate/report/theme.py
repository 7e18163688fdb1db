"""Colours and letters of a report: drawn in the light colours, for which a page puts variables that may be dark.

Each light colour stands for one role alone, so that the page can tell them apart in a drawing.
"""

from typing import Any

LIGHT = {
    "ink": "#1b2733",
    "quiet": "#5b6876",
    "faint": "#c9d0d7",
    "baseline": "#8796a5",
    "likelihood": "#2f6db3",
    "sample": "#c8553d",
    "third": "#dd9f45",
}
DARK = {
    "ink": "#e4eaf0",
    "quiet": "#9dabb9",
    "faint": "#3c4856",
    "baseline": "#74849a",
    "likelihood": "#6aa8ec",
    "sample": "#ee8169",
    "third": "#e5b468",
}
PAPER, DARK_PAPER = "#ffffff", "#12181f"
INK, QUIET, FAINT, BASELINE = (LIGHT[name] for name in ("ink", "quiet", "faint", "baseline"))
LIKELIHOOD, SAMPLE, THIRD = (LIGHT[name] for name in ("likelihood", "sample", "third"))

TEXT, SMALL, TITLE, HEADING, HEAD = 9.0, 8.0, 10.0, 11.5, 15.0  # points

DRAWING: Any = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.facecolor": "none",
    "axes.edgecolor": BASELINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": BASELINE,
    "ytick.color": BASELINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
}
"""Settings under which everything is drawn; text is never read as mathematics, for a name may hold a dollar sign."""


def css_variables(colours: dict[str, str], paper: str) -> str:
    """The declarations of a palette, for a page's style."""
    return "; ".join(f"--{name}: {colour}" for name, colour in {**colours, "paper": paper}.items())


def with_variables(drawing: str) -> str:
    """An SVG drawing whose light colours are the page's variables."""
    for name, colour in LIGHT.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    return drawing
