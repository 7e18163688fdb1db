"""The plots of a report, each drawn on axes of its own. Legends stand above the axes and values beside them.

So nothing that is written can meet what is drawn, whatever the values are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.theme import BASELINE, FAINT, INK, LIKELIHOOD, QUIET, SAMPLE, SMALL, THIRD
from trainer.evaluate.report.wording import BASELINES, LIKELIHOODS, error_of, measured, short, value_of
from trainer.run.summary import ClassCounts, CurvePoint, Evaluated

Row = tuple[str, float, float | None, str]

TERMS = (("prior", BASELINE), ("diffusion", LIKELIHOOD), ("reconstruction", THIRD))
SHORT_NAMES = {
    "vlb_bpd": "discrete-time bound",
    "continuous_vlb_bpd": "continuous-time bound",
    "nll_bpd": "probability-flow ODE",
}
BAR = 0.42  # of the room that a likelihood has
MAX_BARS = 30  # classes that are drawn as bars beside each other
BITS = 1 / (2 * math.log(2))  # per dimension and unit of log-SNR, of a mean squared error of epsilon


def draw_curve(axes: Axes, curve: DenoisingCurve) -> None:
    """What each log-SNR adds to the continuous bound: the area below is its diffusion term."""
    log_snr, per_group = curve.log_snr.numpy(), curve.mse.numpy() * BITS / curve.dimensions
    mean, error = per_group.mean(0), per_group.std(0, ddof=1) / len(per_group) ** 0.5
    axes.fill_between(log_snr, 0, mean, color=LIKELIHOOD, alpha=0.15, lw=0)
    axes.fill_between(log_snr, np.maximum(0, mean - 2 * error), mean + 2 * error, color=LIKELIHOOD, alpha=0.4, lw=0)
    axes.plot(log_snr, mean, color=LIKELIHOOD, lw=1.5)
    axes.set_xlabel("log-SNR  (noise ← → data)")
    axes.set_ylabel("bits/dim per log-SNR")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    _ticks(axes, "xy")
    other = axes.secondary_yaxis("right", functions=(lambda y: np.divide(y, BITS), lambda e: np.multiply(e, BITS)))
    other.set_ylabel("MSE of ε")
    _ticks(other, "y")


def draw_likelihoods(axes: Axes, evaluated: Evaluated) -> None:
    """The likelihoods one below another, the bounds in their terms; names and numbers stand above the bars."""
    names = [name for name in LIKELIHOODS if value_of(evaluated, name) is not None]
    labelled = dict[str, Any]()
    for place, name in enumerate(names):
        left = 0.0
        for term, width, colour in _terms(evaluated, name):
            bar = axes.barh(place, width, BAR, left, color=colour)
            if term:
                labelled.setdefault(term, bar)
            left += width
        value, error = evaluated.scores[name].value, error_of(evaluated, name)
        if error:
            axes.errorbar(value, place, xerr=2 * error, color=INK, capsize=3, lw=1)
        _above(axes, place - BAR / 2, SHORT_NAMES[name], measured(value, error))
    axes.set_ylim(len(names) - 0.68, -0.72)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), max(0.0, axes.get_xlim()[1]))
    axes.set_xlabel("bits per dimension")
    _ticks(axes, "x")
    if labelled:
        _legend(axes, list(labelled.values()), list(labelled))


def _terms(evaluated: Evaluated, name: str) -> list[tuple[str, float, str]]:
    stem = name.removesuffix("bpd")
    parts = [(term, value_of(evaluated, f"{stem}{term}_bpd"), colour) for term, colour in TERMS]
    if any(width is None for _, width, _ in parts):
        return [("", evaluated.scores[name].value, SAMPLE if name == "nll_bpd" else LIKELIHOOD)]
    return [(term, width or 0.0, colour) for term, width, colour in parts]


def draw_nfe(axes: Axes, name: str, points: Sequence[CurvePoint], evaluated: Evaluated) -> None:
    """The Frechet distance against network evaluations."""
    at = [point.nfe for point in points]
    line = axes.errorbar(
        at, [point.value for point in points], [2 * (point.se or 0.0) for point in points],
        color=SAMPLE, marker="o", ms=4.5, lw=1.5, elinewidth=1, capsize=3,
    )  # fmt: skip
    handles, labels = [line.lines[0]], ["samples"]
    heldout = value_of(evaluated, f"{name}_heldout")
    if heldout is not None:
        handles.append(axes.axhline(heldout, color=QUIET, ls=(0, (2, 2)), lw=1.2))  # pyright: ignore[reportArgumentType]
        labels.append("held-out images")
    axes.set_xscale("log")
    low, high = min(at), max(at)
    room = (high / low) ** 0.06 if high > low else 2.0
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(FixedLocator(_apart(at, math.log(high * room / low * room) / 11)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("network evaluations per sample")
    axes.set_ylabel("distance")
    _ticks(axes, "y")
    _legend(axes, handles, labels)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Of ascending places those that are at least a factor of exp(gap) after the one before; the last in any case."""
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if math.log(kept[-1] / place) >= gap * max(1.0, len(f"{kept[-1]:.0f}") / 3):
            kept.append(place)
    return kept[::-1]


def draw_scale(axes: Axes, name: str, evaluated: Evaluated) -> None:
    """A distance beside those of real images, a Gaussian and noise, on a logarithmic axis where all fit on one.

    A value at or below zero, which has no place on it, is an arrow at its left end; each value stands at the right.
    """
    rows = _scale_rows(name, evaluated)
    above = [(value, value + 2 * (error or 0.0)) for _, value, error, _ in rows if value > 0] or [(1.0, 1.0)]
    low, high = min(value for value, _ in above), max(end for _, end in above)
    room = max(1.6, (high / low) ** 0.06)
    low, high = low / room, high * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for place, (_, value, error, colour) in enumerate(rows):
        axes.axhline(place, color=FAINT, lw=0.6, zorder=0)
        if value <= 0:
            axes.plot(0.03, place, "<", color=colour, ms=6, transform=axes.get_yaxis_transform())
        else:
            axes.errorbar(value, place, xerr=2 * error if error else None, fmt="o", ms=5, color=colour, capsize=3, lw=1)
        _beside(axes, place, measured(value, error))
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(FixedLocator(round_steps(low, high)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("distance (log scale, ◂ ≤ 0)" if any(row[1] <= 0 for row in rows) else "distance (log scale)")


def _scale_rows(name: str, evaluated: Evaluated) -> list[Row]:
    found = [("samples", name, SAMPLE), ("samples, N → ∞", f"{name}_infinite", SAMPLE)]
    found += [(label, f"{name}_{key}", BASELINE) for key, label in BASELINES.items()]
    rows = [(label, value_of(evaluated, key), error_of(evaluated, key), colour) for label, key, colour in found]
    return [(label, value, error, colour) for label, value, error, colour in rows if value is not None]


def round_steps(low: float, high: float, max_steps: int = 5) -> list[float]:
    """Round numbers between two that are above zero, for a logarithmic axis: at most `max_steps` of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = list[float]()
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        every = [step for step in every if low <= step <= high]
        if len(every) <= max_steps:
            return every
    return every[:: -(-len(every) // max_steps)]


def draw_classes(axes: Axes, counts: ClassCounts) -> None:
    """Which classes a classifier sees in the samples and in the training images."""
    sets = {"samples": counts.samples, "train": counts.train}
    shares = {name: np.array(each) / max(1, sum(each)) for name, each in sets.items()}
    total = len(shares["train"])
    handles = (_bars if total <= MAX_BARS else _ranked)(axes, shares)
    axes.set_xlim(-0.6, total - 0.4)
    axes.set_ylim(bottom=0)
    _legend(axes, handles, ["samples", "training images"])


def _bars(axes: Axes, shares: Mapping[str, NDArray[np.float64]]) -> list[Any]:
    places = np.arange(len(shares["train"]))
    axes.set_xlabel("class")
    axes.xaxis.set_major_locator(FixedLocator(places[:: 1 if len(places) <= 15 else 5].tolist()))
    axes.set_ylabel("share of images")
    _ticks(axes, "y", _percent)
    sides = (("samples", -0.2, SAMPLE), ("train", 0.2, BASELINE))
    return [axes.bar(places + offset, shares[name], 0.4, color=colour) for name, offset, colour in sides]


def _ranked(axes: Axes, shares: Mapping[str, NDArray[np.float64]]) -> list[Any]:
    """Many classes, the most frequent first; the scale of square roots shows rare ones, and those without samples."""
    order = np.argsort(-shares["train"], kind="stable")
    edges = np.arange(len(order) + 1) - 0.5
    train = axes.stairs(shares["train"][order], edges, fill=True, color=BASELINE, alpha=0.6)
    samples = axes.stairs(shares["samples"][order], edges, color=SAMPLE, lw=1.2)
    axes.set_xlabel("classes by rank in the training images")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axes.set_ylabel("share of images, √ scale")
    top = float(max(shares["train"].max(), shares["samples"].max()))
    kept = [0.0]
    for step in (step * 10.0**power for power in range(-6, 1) for step in (1, 2, 5)):
        if step <= top and math.sqrt(step) - math.sqrt(kept[-1]) >= math.sqrt(top) / 6:
            kept.append(step)
    axes.yaxis.set_major_locator(FixedLocator(kept))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return [samples, train]


def _percent(share: float) -> str:
    return f"{short(100 * share)}%"


def _beside(axes: Axes, place: float, text: str) -> None:
    axes.annotate(
        text, (1, place), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center_baseline",        fontsize=SMALL, annotation_clip=False,
    )  # fmt: skip


def _above(axes: Axes, place: float, name: str, text: str) -> None:
    for x, words, side in ((0, name, "left"), (1, text, "right")):
        axes.annotate(
            words, (x, place), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha=side,
            va="bottom", fontsize=SMALL,
        )  # fmt: skip


def _legend(axes: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the axes; who places them moves it to the panel's left edge."""
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0, ncols=len(labels),
        handlelength=1.2, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


def _ticks(axes: Any, which: str, label: Callable[[float], str] = short) -> None:  # noqa: ANN401 - Axes or secondary
    for axis in [{"x": axes.xaxis, "y": axes.yaxis}[name] for name in which]:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
