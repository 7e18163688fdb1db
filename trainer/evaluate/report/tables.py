"""The tables of a report's page: the headline numbers, and all of them in full."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.panels import distances, nfe_points
from trainer.evaluate.report.wording import BASELINES, LIKELIHOODS, distance_name, features_name, measured, number

Values = Mapping[str, Any]

SETS = {"samples": "Samples", "train": "Training images", "heldout": "Held-out images"}


def headline(values: Values) -> str:
    """The likelihoods, and the distances of the samples with those of the baselines."""
    return f"<div class=headline>{_likelihoods(values)}{_distances(values)}</div>"


def _likelihoods(values: Values) -> str:
    found = [(name, label) for name, label in LIKELIHOODS.items() if number(values, name) is not None]
    rows = [(label, _measured(values, name)) for name, label in found]
    return table("Likelihoods of held-out images", ("Quantity", "Bits per dimension"), rows) if rows else ""


def _distances(values: Values) -> str:
    names = distances(values) + [name for name in values if name.startswith("kid_") and f"{name}_noise" in values]
    ends = ("", "_infinite", *(f"_{key}" for key in BASELINES))
    rows = [
        (f"{distance_name(name)}, {features_name(name)}", *(_measured(values, f"{name}{end}") for end in ends))
        for name in names
    ]
    heads = ("Distance", "Samples", "Samples, N → ∞", *(label[0].upper() + label[1:] for label in BASELINES.values()))
    return table("Distances to the training images (lower is better)", heads, rows) if rows else ""


def _measured(values: Values, name: str) -> str:
    value = number(values, name)
    return "–" if value is None else measured(value, number(values, f"{name}_se"))


def details(values: Values, curve: DenoisingCurve | None) -> str:
    """All numbers, and what the plots are drawn from."""
    parts = [_fold("All numbers", ("Metric", "Value", "Standard error"), _all(values))]
    for name, points in nfe_points(values).items():
        title = f"{distance_name(name)} by sampling cost, {features_name(name)}"
        parts.append(_fold(title, ("Network evaluations", "Distance", "Standard error"), map(_point, points)))
    if "classes" in values:
        kinds = {name: label for name, label in SETS.items() if name in values["classes"]}
        columns = zip(*(values["classes"][name] for name in kinds), strict=True)
        rows = [(str(place), *map(str, row)) for place, row in enumerate(columns)]
        parts.append(_fold("Images by predicted class", ("Class", *kinds.values()), rows))
    if curve:
        heads = ("Log-SNR", "Error per dimension", "Standard error")
        parts.append(_fold("Mean squared error of epsilon by log-SNR", heads, _curve(curve)))
    return "".join(parts)


def _all(values: Values) -> Iterable[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, float) and not name.endswith(("_se", "_sd")):
            yield name, f"{value:.5g}", _error(number(values, f"{name}_se"))


def _point(point: Mapping[str, float]) -> tuple[str, ...]:
    return str(point["nfe"]), f"{point['value']:.5g}", _error(number(point, "se"))


def _error(error: float | None) -> str:
    return "" if error is None else f"± {error:.3g}"


def _curve(curve: DenoisingCurve) -> Iterable[tuple[str, ...]]:
    mean = curve.mse.mean(0) / curve.dimensions
    error = curve.mse.std(0) / len(curve.mse) ** 0.5 / curve.dimensions
    for log_snr, m, e in zip(curve.log_snr.tolist(), mean.tolist(), error.tolist(), strict=True):
        yield f"{log_snr:.2f}", f"{m:.5g}", f"± {e:.2g}"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names its rows; all text is escaped."""
    head = "".join(f"<th scope=col>{escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(each)}</td>' for each in cells)}</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class=scroll role=region aria-label="{escape(caption)}" tabindex=0><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _fold(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<details><summary>{escape(title)}</summary>{table(title, heads, rows)}</details>"
