"""The panels of a report: one for each question that an evaluation has values for, with its title and its words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from PIL import Image

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.layout import HIGHEST, Shape
from trainer.evaluate.report.plots import (
    draw_classes,
    draw_curve,
    draw_likelihoods,
    draw_nfe,
    draw_scale,
)
from trainer.evaluate.report.wording import (
    BASELINES,
    LIKELIHOODS,
    distance_name,
    features_name,
    lowered,
    measured,
    number,
)

Values = Mapping[str, Any]

PICTURES = {
    "samples.png": ("Samples", "drawn at random, not selected", "A grid of samples of the model, not selected."),
    "neighbours.png": (
        "Nearest training images",
        "top: samples, closest first; bottom: training images",
        "Samples in the upper row, those closest to a training image first, each above its nearest training image.",
    ),
}


@dataclass(frozen=True)
class Panel:
    """A plot or a picture.

    Attributes:
        title: what it shows.
        note: what a reader has to know of it.
        text: the same in words, for who does not see it.
        draw: onto axes; None for a picture.
        picture: its file; None for a plot.
        tall: inches that a plot needs at most.
    """

    title: str
    note: str
    text: str
    draw: Callable[[Axes], None] | None = None
    picture: Path | None = None
    tall: float = HIGHEST

    @property
    def shape(self) -> Shape:
        """What it needs on a page."""
        if self.picture is None:
            return Shape(tall=self.tall)
        with Image.open(self.picture) as image:
            return Shape(image.width / image.height)


def panels(values: Values, folder: Path) -> tuple[list[Panel], list[Panel]]:
    """The panels of the likelihood view and of the sample view that there is something for."""
    curve = denoising_curve(values, folder)
    likelihood = [_curve(curve)] if curve else []
    if any(number(values, name) is not None for name in LIKELIHOODS):
        likelihood.append(_likelihoods(values))
    sample = [_nfe(values, name, points) for name, points in nfe_points(values).items()]
    sample += [_scale(values, name) for name in distances(values)]
    if "classes" in values:
        sample.append(_classes(values["classes"]))
    if "samples" in values:
        files = [folder / file for file in PICTURES if (folder / file).is_file()]
        sample += [Panel(*PICTURES[file.name], picture=file) for file in files]
    return likelihood, sample


def denoising_curve(values: Values, folder: Path) -> DenoisingCurve | None:
    """The curve that this evaluation measured."""
    file = folder / "denoising.json"
    if "denoising" not in values["evaluation"]["metrics"] or not file.is_file():
        return None
    return DenoisingCurve.from_json(file.read_text())


def distances(values: Values) -> list[str]:
    """The Frechet distances that were measured, and are finite."""
    found = [name for name in values if name == "fid" or (name.startswith("frechet_") and f"{name}_noise" in values)]
    return [name for name in found if number(values, name) is not None]


def nfe_points(values: Values) -> dict[str, list[Mapping[str, float]]]:
    """Of each Frechet distance its finite values against network evaluations."""
    curves: Mapping[str, Sequence[Mapping[str, float]]] = values.get("frechet_at_nfe", {})
    found = {name: [point for point in points if number(point, "value") is not None] for name, points in curves.items()}
    return {name: points for name, points in found.items() if points}


def _curve(curve: DenoisingCurve) -> Panel:
    low, high = float(curve.log_snr.min()), float(curve.log_snr.max())
    error = curve.mse.mean(0) / curve.dimensions
    text = (
        f"Mean squared error of epsilon against log-SNR, {float(error[-1]):.3g} at {low:.1f} and "
        f"{float(error[0]):.3g} at {high:.1f}; all numbers are in a table below."
    )
    note = "shaded area: diffusion term, continuous time"
    return Panel("Denoising loss by log-SNR", note, text, lambda axes: draw_curve(axes, curve))


def _likelihoods(values: Values) -> Panel:
    names = [name for name in LIKELIHOODS if number(values, name) is not None]
    text = "; ".join(f"{LIKELIHOODS[name]}: {_measured(values, name)} bits per dimension" for name in names)
    several = len(names) > 1
    note = "not comparable with one another" if several else lowered(LIKELIHOODS[names[0]])
    title = "Likelihoods of held-out images" if several else "Likelihood of held-out images"
    return Panel(title, note, f"{text}.", lambda axes: draw_likelihoods(axes, values), tall=0.9 + 0.8 * len(names))


def _nfe(values: Values, name: str, points: Sequence[Mapping[str, float]]) -> Panel:
    each = ", ".join(f"{measured(point['value'], number(point, 'se'))} at {point['nfe']}" for point in points)
    text = f"{distance_name(name)}, {features_name(name)}, by network evaluations per sample: {each}."
    title = f"{distance_name(name)} by sampling cost"
    return Panel(title, features_name(name), text, lambda axes: draw_nfe(axes, name, points, values))


def _scale(values: Values, name: str) -> Panel:
    labels = {"": "samples", "_infinite": "extrapolated to infinitely many"}
    labels |= {f"_{key}": label for key, label in BASELINES.items()}
    each = [f"{label} {_measured(values, f'{name}{end}')}" for end, label in labels.items() if f"{name}{end}" in values]
    note = f"to the training images, {features_name(name)}"
    text = f"{distance_name(name)} to the training images, {features_name(name)}: {', '.join(each)}."
    title = f"{distance_name(name)} and baselines"
    return Panel(title, note, text, lambda axes: draw_scale(axes, name, values))


def _classes(counts: Mapping[str, Sequence[int]]) -> Panel:
    missing = sum(bool(real) and not drawn for drawn, real in zip(counts["samples"], counts["train"], strict=True))
    text = (
        f"Shares of {len(counts['train'])} classes in the samples and in the training images; "
        f"{missing} of the training images' classes are missing from the samples."
    )
    return Panel("Class frequencies", "as the classifier predicts them", text, lambda axes: draw_classes(axes, counts))


def _measured(values: Values, name: str) -> str:
    value = number(values, name)
    return "not finite" if value is None else measured(value, number(values, f"{name}_se"))
