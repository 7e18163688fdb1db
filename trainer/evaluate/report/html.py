"""The two-view report of an evaluation: report.html, whole in one file, and the same panels as report.png.

Once the network as a deep variational autoencoder, once as a score model: one set of weights. The page's plots are
drawings that take their colours from its style, light, dark or printed.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from diffusion.json_text import json_text
from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.figure import drawing, whole
from trainer.evaluate.report.panels import Panel, denoising_curve, panels
from trainer.evaluate.report.tables import details, headline
from trainer.evaluate.report.theme import DARK, DARK_PAPER, DRAWING, LIGHT, PAPER, css_variables
from trainer.evaluate.report.wording import ERRORS, sampling
from trainer.run.summary import Evaluated, evaluated_from_json

VIEWS = (
    ("vae", "As a deep VAE", "What probability the model gives to images it has not seen."),
    ("score", "As a score model", "How close the samples of its reverse SDE or ODE come to the training images."),
)
DPI = 160
STYLE = (
    f"""
:root {{ {css_variables(LIGHT, PAPER)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK, DARK_PAPER)} }} }}
"""
    + """
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
       max-width: 78rem; padding: 1.5rem 1.25rem 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 0 }
h3 { font-size: .95rem; margin: 0 } p { margin: .15rem 0 } .quiet, figcaption p, caption { color: var(--quiet) }
header, .headline, section { margin-bottom: 2rem } code { font-size: .9em; overflow-wrap: anywhere }
.headline { display: flex; flex-wrap: wrap; gap: 1.25rem 3rem }
section { border-top: 2px solid var(--view); padding-top: .6rem } section h2 { color: var(--view) }
.vae { --view: var(--likelihood) } .score { --view: var(--sample) }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.75rem 2rem;
          margin-top: 1rem; align-items: start }
figure { margin: 0; min-width: 0; break-inside: avoid } figure svg, figure img { display: block; margin-top: .5rem }
figcaption p { font-size: .85rem } figure svg { width: 100%; height: auto; max-width: 32rem; stroke-linejoin: round }
figure img { max-width: 100%; height: auto; background: #fff } figure.wide { grid-column: 1 / -1 }
figure.wide img { width: 100%; image-rendering: pixelated }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .3rem } td, th { padding: .2rem .9rem .2rem 0; text-align: right }
th { font-weight: 600 } th:first-child { text-align: left } tbody th { font-weight: 400 }
thead th { border-bottom: 1px solid var(--baseline) } tbody tr + tr > * { border-top: 1px solid var(--faint) }
details { margin: .4rem 0 } details caption { display: none }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0 }
pre { overflow-x: auto; font-size: .8rem } :focus-visible { outline: 2px solid var(--likelihood) }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .panels { grid-template-columns: 1fr 1fr } }
"""
)


def write_report(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write report.html and report.png of an evaluation into its folder.

    Args:
        folder: with the evaluation's files.
        values: what `evaluation.json` or a run's summary says, its `evaluation` settings included.

    Returns:
        The page.
    """
    evaluated = evaluated_from_json(values)
    curve = denoising_curve(values["evaluation"]["metrics"], folder)
    both = panels(evaluated, curve, folder)
    notes = [sampling(values)] if "samples" in values else []
    page = folder / "report.html"
    with rc_context(DRAWING):
        picture = whole(both, [name for _, name, _ in VIEWS], _title(values), "; ".join([*notes, ERRORS]))
        picture.savefig(folder / "report.png", dpi=DPI, metadata={"Software": None})
        page.write_text(_page(values, evaluated, curve, both))
    return page


def _title(values: Mapping[str, Any]) -> str:
    step = f", step {values['step']:,}" if "step" in values else ""
    return f"{values.get('model', values.get('name'))}{step}"


def _page(
    values: Mapping[str, Any],
    evaluated: Evaluated,
    curve: DenoisingCurve | None,
    both: tuple[Sequence[Panel], Sequence[Panel]],
) -> str:
    title = escape(_title(values))
    drawn = f"{escape(sampling(values))} · " if "samples" in values else ""
    views = "".join(_view(*view, found) for view, found in zip(VIEWS, both, strict=True))
    notes = "".join(f"<p class=quiet>Note: {escape(note)}.</p>" for note in evaluated.notes)
    recipe = escape(json_text({"evaluation": values["evaluation"], **_digests(values)}, indent=2))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><header><h1>{title}</h1>"
        f"<p class=quiet>{drawn}package <code>{escape(values['package_sha256'][:16])}</code> · "
        f"data <code>{escape(values['dataset_fingerprint'][:16])}</code></p><p class=quiet>{ERRORS}</p></header>"
        f"<main>{headline(evaluated)}{views}{notes}<h2>Details</h2>{details(evaluated, curve)}"
        f"<details><summary>How it was measured</summary><pre>{recipe}</pre></details></main></body></html>\n"
    )


def _view(key: str, name: str, text: str, found: Sequence[Panel]) -> str:
    figures = "".join(_figure(panel, f"{key}{place}") for place, panel in enumerate(found))
    shown = f"<div class=panels>{figures}</div>" if figures else "<p>Not measured.</p>"
    return f"<section class={key}><h2>{name}</h2><p class=quiet>{text}</p>{shown}</section>"


def _figure(panel: Panel, prefix: str) -> str:
    text = escape(panel.text)
    if panel.picture:
        data = base64.b64encode(panel.picture.read_bytes()).decode()
        image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    else:
        image = drawing(panel, prefix).replace("<svg ", f'<svg role=img aria-label="{text}" ', 1)
    wide = " class=wide" if (panel.shape.aspect or 0.0) > 2 else ""
    caption = f"<figcaption><h3>{escape(panel.title)}</h3><p>{escape(panel.note)}</p></figcaption>"
    return f"<figure{wide}>{caption}{image}</figure>"


def _digests(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("package_sha256", "dataset_fingerprint", "extractors") if name in values}
