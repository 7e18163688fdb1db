"""Which of two models is better, by what was measured of both and beyond the errors of that.

Likelihoods are of the same held-out images, so the difference of two models is the mean of differences image by image,
whose standard error is much smaller than that of either value. Samples share nothing: their errors add. No torch.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError

LIKELIHOODS = ("vlb_bpd", "continuous_vlb_bpd", "nll_bpd")
SAMPLE = re.compile(r"(frechet|kid)_(pixels|classifier|efficientnet_lite0|inception)|fid|precision|recall")
HIGHER_IS_BETTER = ("precision", "recall")
FILES = ("evaluation.json", "summary.json")
PER_IMAGE = "heldout.safetensors"

Word = Literal["better", "worse", "undecided", "not comparable"]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found of a model.

    Attributes:
        name: of the model, for people.
        values: of `evaluation.json` or a run's `summary.json`.
        per_image: bits/dim of each held-out image, by metric; empty where the file is not there.
    """

    name: str
    values: Mapping[str, Any]
    per_image: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def score(self, metric: str) -> tuple[float, float | None] | None:
        """A metric's value and its standard error; None where it was not measured or is no number."""
        value, error = _number(self.values.get(metric)), _number(self.values.get(f"{metric}_se"))
        return None if value is None else (value, error)

    @property
    def metrics(self) -> list[str]:
        """The metrics that models are compared by and that were measured, the likelihoods first."""
        sampled = [name for name in self.values if SAMPLE.fullmatch(name)]
        return [name for name in [*LIKELIHOODS, *sampled] if self.score(name) is not None]


def _number(value: Any) -> float | None:  # noqa: ANN401 - any JSON value
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Verdict:
    """A model beside a first one, by one metric.

    Attributes:
        word: what can be said.
        reason: in words.
        difference: its value minus the first's.
        standard_error: of the difference.
    """

    word: Word
    reason: str
    difference: float | None = None
    standard_error: float | None = None


def compare(first: Evaluated, other: Evaluated, metric: str, sigmas: float = 2.0) -> Verdict:
    """Whether `other` is better than `first` by more than `sigmas` standard errors of the difference."""
    a, b = first.score(metric), other.score(metric)
    if a is None or b is None:
        return Verdict("not comparable", f"{metric} was not measured of {(first if a is None else other).name}")
    unlike = measured_otherwise(first, other, metric)
    if unlike:
        return Verdict("not comparable", unlike)
    paired = _paired(first, other, metric)
    if paired is None and (a[1] is None or b[1] is None):
        return Verdict("not comparable", f"{metric} of {(first if a[1] is None else other).name} has no standard error")
    difference, error = paired or (b[0] - a[0], math.hypot(a[1] or 0, b[1] or 0))
    how = ", paired" if paired else ""
    if abs(difference) <= sigmas * error or difference == 0:
        return Verdict("undecided", f"{difference:+.4g} +- {error:.2g}{how}", difference, error)
    better = (difference > 0) == (metric in HIGHER_IS_BETTER)
    size = f", {abs(difference) / error:.1f} standard errors" if error else ""
    return Verdict("better" if better else "worse", f"{difference:+.4g} +- {error:.2g}{how}{size}", difference, error)


def measured_otherwise(first: Evaluated, other: Evaluated, metric: str) -> str | None:
    """Why values of a metric are not of the same thing; None where they are."""
    asked = ["dataset_fingerprint"] + (["samples"] if SAMPLE.fullmatch(metric) else [])
    for name in asked:
        values = [each.values.get(name) for each in (first, other)]
        if values[0] != values[1]:
            return f"{name} is {_short(values[1])}, not {_short(values[0])}"
    extractors = [_extractors(each.values, metric) for each in (first, other)]
    if extractors[0] != extractors[1]:
        return "the extractors are not the same"
    return None


def _extractors(values: Mapping[str, Any], metric: str) -> dict[str, str]:
    """The digests of what a sample metric is told by; precision and recall name none, so all are."""
    if not SAMPLE.fullmatch(metric):
        return {}
    known = {name: found["sha256"] for name, found in values.get("extractors", {}).items()}
    name = "inception" if metric == "fid" else metric.partition("_")[2]
    return {name: known[name]} if name in known else known


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return str(value)[:16]


def _paired(first: Evaluated, other: Evaluated, metric: str) -> tuple[float, float] | None:
    a, b = first.per_image.get(metric), other.per_image.get(metric)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    differences = b - a
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def read(folder: Path, name: str) -> Evaluated:
    """What an evaluation left in its folder, or in one of these files.

    Raises:
        InputError: there is none.
    """
    file = folder if folder.is_file() else next((folder / each for each in FILES if (folder / each).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: no evaluation; allowed: a folder with {' or '.join(FILES)}")
    try:
        values: dict[str, Any] = json.loads(file.read_text())
        if not isinstance(values, dict) or "dataset_fingerprint" not in values:
            raise ValueError("no dataset_fingerprint")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not what an evaluation leaves: {error}") from None
    return Evaluated(name, values, _per_image(file.parent / PER_IMAGE, str(values["dataset_fingerprint"])))


def _per_image(file: Path, fingerprint: str) -> dict[str, NDArray[np.float64]]:
    """Bits/dim of each held-out image, where the file is of these data."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as found:
            told: dict[str, str] = found.metadata()
            if told["dataset_fingerprint"] != fingerprint:
                return {}
            scale = math.log(2) * int(told["dimensions"])
            return {f"{name}_bpd": found.get_tensor(name) / scale for name in found.keys()}  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return {}
