"""The two-view report of an evaluation: report.html, whole in one file, and the same pictures as report.png.

On the left the network as a deep variational autoencoder, on the right as a score model: one set of weights.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.panels import Panel, panels

VIEWS = (
    ("As a deep VAE", "What probability the model gives to images it has not seen."),
    ("As a score model", "What the samples of its reverse SDE or ODE are like."),
)
WIDTH, HEIGHT, DPI = 5.2, 3.2, 110
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2733; background: #fff; margin: 2rem auto; max-width: 1500px;
       padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-bottom: 0 } p { margin: .2rem 0 1rem }
.views { display: grid; grid-template-columns: 1fr 2fr; gap: 2rem } section { min-width: 0 }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .5rem 1rem;
          align-items: start }
@media (max-width: 60rem) { .views { grid-template-columns: 1fr } }
img { max-width: 100%; height: auto } small, .quiet { color: #5d6b78 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .12rem .8rem .12rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } pre { overflow-x: auto; font-size: 12px }
"""


def write_report(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write report.html and report.png of an evaluation into its folder.

    Args:
        folder: with the evaluation's files.
        values: what `evaluation.json` or a run's summary says, its `evaluation` settings included.

    Returns:
        The page.
    """
    both = panels(values, folder)
    _whole(both, _title(values)).savefig(folder / "report.png", dpi=DPI)
    page = folder / "report.html"
    page.write_text(_page(values, both, folder))
    return page


def _title(values: Mapping[str, Any]) -> str:
    step = f", step {values['step']}" if "step" in values else ""
    return f"{values.get('model', values.get('name'))}{step}"


def _whole(both: tuple[Sequence[Panel], Sequence[Panel]], title: str) -> Figure:
    rows = max(1, len(both[0]), -(-len(both[1]) // 2))
    figure = Figure(figsize=(3 * WIDTH, HEIGHT * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    sides: Any = figure.subfigures(1, 2, wspace=0.04, width_ratios=(1, 2))
    for side, columns, view, (name, _) in zip(sides, (1, 2), both, VIEWS, strict=True):
        side.suptitle(name, x=0.02, ha="left", fontsize=12)
        for place, panel in enumerate(view):
            panel(side.add_subplot(rows, columns, place + 1))
    return figure


def _single(panel: Panel) -> str:
    """A panel as an image for the page."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    panel(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _page(values: Mapping[str, Any], both: tuple[Sequence[Panel], Sequence[Panel]], folder: Path) -> str:
    views = "".join(
        f"<section><h2>{name}</h2><p class=quiet>{text}</p>"
        f"<div class=panels>{''.join(map(_single, view)) or 'Not measured.'}</div></section>"
        for (name, text), view in zip(VIEWS, both, strict=True)
    )
    notes = "".join(f"<p class=quiet>Note: {escape(note)}.</p>" for note in values.get("notes", []))
    title = escape(_title(values))
    recipe = escape(json.dumps({"evaluation": values["evaluation"], **_digests(values)}, indent=2))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p class=quiet>package {values['package_sha256'][:16]} · data "
        f"{values['dataset_fingerprint'][:16]} · ± is a standard error, bars in pictures are two</p>"
        f"<div class=views>{views}</div>{notes}"
        f"<h2>All numbers</h2>{_numbers(values)}{_curve_table(folder, values)}"
        f"<details><summary>How it was measured</summary><pre>{recipe}</pre></details></html>\n"
    )


def _digests(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("package_sha256", "dataset_fingerprint", "extractors") if name in values}


def _numbers(values: Mapping[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        if isinstance(value, float) and not name.endswith(("_se", "_sd")):
            error = values.get(f"{name}_se")
            spread = "" if error is None else f"± {error:.3g}"
            rows.append(f"<tr><td>{name}<td class=number>{value:.5g}<td>{spread}")
    return f"<table><tr><th>metric<th>value<th>standard error{''.join(rows)}</table>"


def _curve_table(folder: Path, values: Mapping[str, Any]) -> str:
    file = folder / "denoising.json"
    if "denoising" not in values["evaluation"]["metrics"] or not file.is_file():
        return ""
    curve = DenoisingCurve.from_json(file.read_text())
    mean, error = curve.mse.mean(0), curve.mse.std(0) / len(curve.mse) ** 0.5
    rows = "".join(
        f"<tr><td class=number>{log_snr:.2f}<td class=number>{m / curve.dimensions:.5g}<td>± {e / curve.dimensions:.2g}"
        for log_snr, m, e in zip(curve.log_snr.tolist(), mean.tolist(), error.tolist(), strict=True)
    )
    return (
        "<details><summary>Mean squared error of epsilon against log-SNR</summary><table>"
        f"<tr><th>log-SNR<th>error a dimension<th>standard error{rows}</table></details>"
    )
