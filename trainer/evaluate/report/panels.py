"""The panels of a report: one for each question that an evaluation has values for, with its title and its words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from PIL import Image

from diffusion.bounded import read_bounded
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
    error_of,
    features_name,
    lowered,
    measured,
    value_of,
)
from trainer.files import MAX_JSON_BYTES
from trainer.run.summary import ClassCounts, CurvePoint, Evaluated

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


def panels(evaluated: Evaluated, curve: DenoisingCurve | None, folder: Path) -> tuple[list[Panel], list[Panel]]:
    """The panels of the likelihood view and of the sample view that there is something for.

    Args:
        evaluated: what was found.
        curve: the denoising curve of this evaluation; None where it was not measured.
        folder: with the pictures of samples.
    """
    likelihood = [_curve(curve)] if curve else []
    if any(value_of(evaluated, name) is not None for name in LIKELIHOODS):
        likelihood.append(_likelihoods(evaluated))
    sample = [_nfe(evaluated, name, points) for name, points in nfe_points(evaluated).items()]
    sample += [_scale(evaluated, name) for name in distances(evaluated)]
    if evaluated.classes is not None:
        sample.append(_classes(evaluated.classes))
    if evaluated.samples is not None:
        files = [folder / file for file in PICTURES if (folder / file).is_file()]
        sample += [Panel(*PICTURES[file.name], picture=file) for file in files]
    return likelihood, sample


def denoising_curve(metrics: Sequence[str], folder: Path) -> DenoisingCurve | None:
    """The curve that an evaluation of these metrics left in its folder; None where it measured none."""
    file = folder / "denoising.json"
    if "denoising" not in metrics or not file.is_file():
        return None
    return DenoisingCurve.from_json(read_bounded(file, MAX_JSON_BYTES))


def distances(evaluated: Evaluated) -> list[str]:
    """The Frechet distances that were measured, and are finite."""
    scores = evaluated.scores
    names = [name for name in scores if name == "fid" or (name.startswith("frechet_") and f"{name}_noise" in scores)]
    return [name for name in names if value_of(evaluated, name) is not None]


def nfe_points(evaluated: Evaluated) -> dict[str, list[CurvePoint]]:
    """The finite values of each Frechet distance against network evaluations."""
    curves = {
        name: [point for point in points if math.isfinite(point.value)]
        for name, points in evaluated.frechet_at_nfe.items()
    }
    return {name: points for name, points in curves.items() if points}


def _curve(curve: DenoisingCurve) -> Panel:
    low, high = float(curve.log_snr.min()), float(curve.log_snr.max())
    error = curve.mse.mean(0) / curve.dimensions
    text = (
        f"Mean squared error of epsilon against log-SNR, {float(error[-1]):.3g} at {low:.1f} and "
        f"{float(error[0]):.3g} at {high:.1f}; all numbers are in a table below."
    )
    note = "shaded area: diffusion term, continuous time"
    return Panel("Denoising loss by log-SNR", note, text, lambda axes: draw_curve(axes, curve))


def _likelihoods(evaluated: Evaluated) -> Panel:
    names = [name for name in LIKELIHOODS if value_of(evaluated, name) is not None]
    text = "; ".join(f"{LIKELIHOODS[name]}: {_measured(evaluated, name)} bits per dimension" for name in names)
    several = len(names) > 1
    note = "not comparable with one another" if several else lowered(LIKELIHOODS[names[0]])
    title = "Likelihoods of held-out images" if several else "Likelihood of held-out images"
    return Panel(title, note, f"{text}.", lambda axes: draw_likelihoods(axes, evaluated), tall=0.9 + 0.8 * len(names))


def _nfe(evaluated: Evaluated, name: str, points: Sequence[CurvePoint]) -> Panel:
    each = ", ".join(f"{measured(point.value, point.se)} at {point.nfe}" for point in points)
    text = f"{distance_name(name)}, {features_name(name)}, by network evaluations per sample: {each}."
    title = f"{distance_name(name)} by sampling cost"
    return Panel(title, features_name(name), text, lambda axes: draw_nfe(axes, name, points, evaluated))


def _scale(evaluated: Evaluated, name: str) -> Panel:
    labels = {"": "samples", "_infinite": "extrapolated to infinitely many"}
    labels |= {f"_{key}": label for key, label in BASELINES.items()}
    each = [
        f"{label} {_measured(evaluated, f'{name}{end}')}"
        for end, label in labels.items()
        if f"{name}{end}" in evaluated.scores
    ]
    note = f"to the training images, {features_name(name)}"
    text = f"{distance_name(name)} to the training images, {features_name(name)}: {', '.join(each)}."
    title = f"{distance_name(name)} and baselines"
    return Panel(title, note, text, lambda axes: draw_scale(axes, name, evaluated))


def _classes(counts: ClassCounts) -> Panel:
    missing = sum(bool(real) and not drawn for drawn, real in zip(counts.samples, counts.train, strict=True))
    text = (
        f"Shares of {len(counts.train)} classes in the samples and in the training images; "
        f"{missing} of the training images' classes are missing from the samples."
    )
    return Panel("Class frequencies", "as the classifier predicts them", text, lambda axes: draw_classes(axes, counts))


def _measured(evaluated: Evaluated, name: str) -> str:
    value = value_of(evaluated, name)
    return "not finite" if value is None else measured(value, error_of(evaluated, name))
