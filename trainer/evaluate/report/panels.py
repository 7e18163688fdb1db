"""The pictures of a report: one panel a question, each drawn on axes of its own from an evaluation's values."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from diffusion.likelihood.screening import DenoisingCurve

INK, QUIET = "#1b2733", "#8a97a3"
LIKELIHOOD, SAMPLE, THIRD = "#2f6db3", "#c8553d", "#e0a458"
YARDSTICK_NAMES = {"heldout": "real images held out", "gaussian": "fitted Gaussian", "noise": "uniform noise"}

Values = Mapping[str, Any]
Panel = Callable[[Axes], None]


def panels(values: Values, folder: Path) -> tuple[list[Panel], list[Panel]]:
    """The panels of the likelihood view and of the sample view that there is something for."""
    likelihood, sample = list[Panel](), list[Panel]()
    curve = folder / "denoising.json"
    if "denoising" in values["evaluation"]["metrics"] and curve.is_file():
        found = DenoisingCurve.from_json(curve.read_text())
        likelihood.append(lambda axes: draw_curve(axes, found))
    if any(name in values for name in ("vlb_bpd", "continuous_vlb_bpd", "nll_bpd")):
        likelihood.append(lambda axes: draw_likelihoods(axes, values))
    for name, points in values.get("frechet_at_nfe", {}).items():
        sample.append(lambda axes, name=name, points=points: draw_nfe(axes, name, points, values))
    for name in distances(values):
        sample.append(lambda axes, name=name: draw_scale(axes, name, values))
    if "classes" in values:
        sample.append(lambda axes: draw_classes(axes, values["classes"]))
    for file, title in (("samples.png", "samples"), ("neighbours.png", NEIGHBOURS)):
        if (folder / file).is_file() and "samples" in values:
            sample.append(lambda axes, path=folder / file, title=title: draw_picture(axes, path, title))
    return likelihood, sample


NEIGHBOURS = "samples from the nearest to a training image to the farthest, and that image"


def distances(values: Values) -> list[str]:
    """The Frechet distances that were measured."""
    return [name for name in values if name == "fid" or (name.startswith("frechet_") and f"{name}_noise" in values)]


def draw_curve(axes: Axes, curve: DenoisingCurve) -> None:
    """What each log-SNR adds to the continuous bound: the area below is its diffusion term."""
    log_snr, per_group = curve.log_snr.numpy(), curve.mse.numpy() / (2 * math.log(2) * curve.dimensions)
    mean, error = per_group.mean(0), per_group.std(0, ddof=1) / len(per_group) ** 0.5
    axes.fill_between(log_snr, 0, mean, color=LIKELIHOOD, alpha=0.15, lw=0)
    axes.fill_between(log_snr, mean - 2 * error, mean + 2 * error, color=LIKELIHOOD, alpha=0.4, lw=0)
    axes.plot(log_snr, mean, color=LIKELIHOOD)
    axes.set_xlabel("log-SNR   (noise  ←   →  data)")
    axes.set_ylabel("bits/dim per unit of log-SNR")
    axes.set_ylim(bottom=0)
    bits = 1 / (2 * math.log(2))
    other = axes.secondary_yaxis("right", functions=(lambda y: np.divide(y, bits), lambda mse: np.multiply(mse, bits)))
    other.set_ylabel("mean squared error of epsilon")
    other.tick_params(labelsize=8)
    other.spines["right"].set_color(QUIET)
    _finish(axes, "loss by log-SNR; the area is the diffusion term")


def draw_likelihoods(axes: Axes, values: Values) -> None:
    """The three likelihoods side by side, the bounds in their terms."""
    names = [name for name in ("vlb_bpd", "continuous_vlb_bpd", "nll_bpd") if name in values]
    for place, name in enumerate(names):
        bottom = 0.0
        stem = name.removesuffix("bpd")
        terms = [(term, f"{stem}{term}_bpd") for term in ("prior", "diffusion", "reconstruction")]
        if terms[0][1] not in values:
            terms = [("density of the ODE", name)]
        for (term, key), colour in zip(terms, (QUIET, LIKELIHOOD, THIRD) if len(terms) > 1 else (SAMPLE,), strict=True):
            axes.bar(place, values[key], 0.55, bottom, color=colour, alpha=0.85, label=term if place != 1 else None)
            bottom += values[key]
        error = values[f"{name}_se"]
        axes.errorbar(place, values[name], 2 * error, color=INK, capsize=4, lw=1)
        axes.annotate(
            f"{values[name]:.3f} ± {error:.3f}", (place, values[name] + 2 * error), (0, 4),
            textcoords="offset points", ha="center", color=INK,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), [name.removesuffix("_bpd").replace("_", " ") for name in names])
    axes.set_ylabel("bits per dimension")
    axes.margins(y=0.35)
    axes.legend(frameon=False, loc="upper left", ncols=4, fontsize=8, handlelength=1, columnspacing=1)
    _finish(axes, "three likelihoods: three questions, not one scale")


def draw_nfe(axes: Axes, name: str, points: list[dict[str, float]], values: Values) -> None:
    """The Frechet distance against network evaluations."""
    at = [point["nfe"] for point in points]
    axes.errorbar(
        at, [point["value"] for point in points], [2 * point.get("se", 0.0) for point in points],
        color=SAMPLE, marker="o", capsize=3,
    )  # fmt: skip
    heldout = values.get(f"{name}_heldout")
    if heldout is not None:
        axes.axhline(heldout, color=QUIET, ls=":", lw=1)
        axes.annotate("real images held out", (at[-1], heldout), (0, 3), textcoords="offset points", ha="right",
                      color=QUIET, fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(at, [str(nfe) for nfe in at])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"network evaluations a sample, {values['evaluation']['solver']['kind']}")
    axes.set_ylabel(name)
    _finish(axes, f"{name} against cost")


def draw_scale(axes: Axes, name: str, values: Values) -> None:
    """A distance beside those of real images, a Gaussian and noise."""
    rows = [("samples", values[name], values.get(f"{name}_se", 0.0), SAMPLE)]
    if f"{name}_infinite" in values:
        rows.append(("… extrapolated to N = ∞", values[f"{name}_infinite"], values[f"{name}_infinite_se"], SAMPLE))
    for key, label in YARDSTICK_NAMES.items():
        if f"{name}_{key}" in values:
            rows.append((label, values[f"{name}_{key}"], 0.0, QUIET))
    least = min([row[1] for row in rows if row[1] > 0], default=1.0)
    for place, (_, value, error, colour) in enumerate(rows):
        axes.errorbar(max(value, least / 3), place, xerr=2 * error or None, fmt="o", color=colour, capsize=3)
        spread = f" ± {error:.2g}" if error else ""
        axes.annotate(f"{value:.4g}{spread}", (max(value, least / 3), place), (0, 7), textcoords="offset points",
                      ha="center", color=INK, fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"distance to the training images, {values['samples']} samples")
    _finish(axes, f"{name} on its scale")


def draw_classes(axes: Axes, counts: Mapping[str, list[int]]) -> None:
    """Which classes a classifier sees in the samples and in the training images."""
    places, width = np.arange(len(counts["train"])), 0.4
    for offset, (name, colour, label) in enumerate(
        (("samples", SAMPLE, "samples"), ("train", QUIET, "training images"))
    ):
        share = np.array(counts[name]) / sum(counts[name])
        axes.bar(places + (offset - 0.5) * width, share, width, color=colour, alpha=0.85, label=label)
    axes.set_xticks(places)
    axes.set_xlabel("class, as the classifier sees it")
    axes.set_ylabel("share")
    axes.margins(y=0.25)
    axes.legend(frameon=False, ncols=2, loc="upper right", fontsize=8)
    _finish(axes, "classes")


def draw_picture(axes: Axes, file: Path, title: str) -> None:
    """An image file as it is."""
    axes.imshow(imread(file), cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
