"""The tables of a report's page: the headline numbers, and all of them in full."""

from collections.abc import Iterable, Sequence
from html import escape

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.panels import distances, nfe_points
from trainer.evaluate.report.wording import (
    BASELINES,
    LIKELIHOODS,
    distance_name,
    error_of,
    features_name,
    measured,
    value_of,
)
from trainer.run.summary import CurvePoint, Evaluated

SETS = ("Samples", "Training images", "Held-out images")


def headline(evaluated: Evaluated) -> str:
    """The likelihoods, and the distances of the samples with those of the baselines."""
    return f"<div class=headline>{_likelihoods(evaluated)}{_distances(evaluated)}</div>"


def _likelihoods(evaluated: Evaluated) -> str:
    found = [(name, label) for name, label in LIKELIHOODS.items() if value_of(evaluated, name) is not None]
    rows = [(label, _measured(evaluated, name)) for name, label in found]
    return table("Likelihoods of held-out images", ("Quantity", "Bits per dimension"), rows) if rows else ""


def _distances(evaluated: Evaluated) -> str:
    names = distances(evaluated) + [
        name for name in evaluated.scores if name.startswith("kid_") and f"{name}_noise" in evaluated.scores
    ]
    ends = ("", "_infinite", *(f"_{key}" for key in BASELINES))
    rows = [
        (f"{distance_name(name)}, {features_name(name)}", *(_measured(evaluated, f"{name}{end}") for end in ends))
        for name in names
    ]
    heads = ("Distance", "Samples", "Samples, N → ∞", *(label[0].upper() + label[1:] for label in BASELINES.values()))
    return table("Distances to the training images (lower is better)", heads, rows) if rows else ""


def _measured(evaluated: Evaluated, name: str) -> str:
    value = value_of(evaluated, name)
    return "–" if value is None else measured(value, error_of(evaluated, name))


def details(evaluated: Evaluated, curve: DenoisingCurve | None) -> str:
    """All numbers, and what the plots are drawn from."""
    parts = [_fold("All numbers", ("Metric", "Value", "Standard error"), _all(evaluated))]
    for name, points in nfe_points(evaluated).items():
        title = f"{distance_name(name)} by sampling cost, {features_name(name)}"
        parts.append(_fold(title, ("Network evaluations", "Distance", "Standard error"), map(_point, points)))
    if counts := evaluated.classes:
        columns = zip(counts.samples, counts.train, counts.heldout, strict=True)
        rows = [(str(place), *map(str, row)) for place, row in enumerate(columns)]
        parts.append(_fold("Images by predicted class", ("Class", *SETS), rows))
    if curve:
        heads = ("Log-SNR", "Error per dimension", "Standard error")
        parts.append(_fold("Mean squared error of epsilon by log-SNR", heads, _curve(curve)))
    return "".join(parts)


def _all(evaluated: Evaluated) -> Iterable[tuple[str, ...]]:
    for name, score in evaluated.scores.items():
        yield name, f"{score.value:.5g}", _error(error_of(evaluated, name))


def _point(point: CurvePoint) -> tuple[str, ...]:
    return str(point.nfe), f"{point.value:.5g}", _error(point.se)


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
