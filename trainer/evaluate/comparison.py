"""Which of two models is better by their evaluation scores, beyond the standard errors.

Likelihoods are of the same held-out images, so the difference of two models is the mean of paired differences, whose
standard error is much smaller than that of either value. Samples are independent: variances add. No torch.
"""
# safetensors has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion.bounded import check_bytes
from trainer.errors import InputError
from trainer.evaluate.results import PER_IMAGE
from trainer.files import MAX_JSON_BYTES, is_mapping, read_json
from trainer.run.summary import LIKELIHOODS, Evaluated, Score, evaluated_from_json

COMPARABLE_SAMPLE_METRIC = re.compile(
    r"(frechet|kid)_(pixels|classifier|efficientnet_lite0|inception)|fid|precision|recall"
)
HIGHER_IS_BETTER = ("precision", "recall")
FILES = ("evaluation.json", "summary.json")

Outcome = Literal["better", "worse", "undecided", "not comparable"]


@dataclass(frozen=True)
class ComparedModel:
    """A model and its scores.

    Attributes:
        name: shown to users.
        dataset_fingerprint: of the data set whose held-out images were scored.
        evaluated: its scores.
        per_image: bits/dim of each held-out image, float64 [N], by metric; empty where the file is not there.
    """

    name: str
    dataset_fingerprint: str
    evaluated: Evaluated
    per_image: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])

    def score(self, metric: str) -> Score | None:
        """A metric that can be compared; None where it was not measured, or is NaN or infinite."""
        return self.evaluated.score(metric)

    @property
    def metrics(self) -> list[str]:
        """The metrics that models are compared by and that were measured, the likelihoods first."""
        sampled = [name for name in self.evaluated.scores if COMPARABLE_SAMPLE_METRIC.fullmatch(name)]
        return [name for name in [*LIKELIHOODS, *sampled] if self.score(name) is not None]


@dataclass(frozen=True)
class ComparisonResult:
    """Comparison of a model with a first one by one metric. The names of the fields are keys of the JSON output.

    Attributes:
        word: the outcome.
        reason: explanation of the outcome.
        difference: its value minus that of the first model; None if not comparable.
        standard_error: of the difference; None if not comparable.
    """

    word: Outcome
    reason: str
    difference: float | None = None
    standard_error: float | None = None


def compare(first: ComparedModel, other: ComparedModel, metric: str, sigmas: float = 2.0) -> ComparisonResult:
    """Whether `other` is better than `first` by more than `sigmas` standard errors of the difference."""
    a, b = first.score(metric), other.score(metric)
    if a is None or b is None:
        return ComparisonResult(
            "not comparable", f"{metric} was not measured of {(first if a is None else other).name}"
        )
    mismatch = protocol_difference(first, other, metric)
    if mismatch:
        return ComparisonResult("not comparable", mismatch)
    paired = _paired(first, other, metric)
    if paired is None and (a.se is None or b.se is None):
        return ComparisonResult(
            "not comparable", f"{metric} of {(first if a.se is None else other).name} has no standard error"
        )
    difference, error = paired or (b.value - a.value, math.hypot(a.se or 0, b.se or 0))
    how = ", paired" if paired else ""
    if abs(difference) <= sigmas * error or difference == 0:
        return ComparisonResult("undecided", f"{difference:+.4g} +- {error:.2g}{how}", difference, error)
    better = (difference > 0) == (metric in HIGHER_IS_BETTER)
    size = f", {abs(difference) / error:.1f} standard errors" if error else ""
    return ComparisonResult(
        "better" if better else "worse", f"{difference:+.4g} +- {error:.2g}{how}{size}", difference, error
    )


def protocol_difference(first: ComparedModel, other: ComparedModel, metric: str) -> str | None:
    """Why two values of a metric were measured differently and cannot be compared; None if they can."""
    if first.dataset_fingerprint != other.dataset_fingerprint:
        return f"dataset_fingerprint is {other.dataset_fingerprint[:16]}, not {first.dataset_fingerprint[:16]}"
    if not COMPARABLE_SAMPLE_METRIC.fullmatch(metric):
        return None
    if first.evaluated.samples != other.evaluated.samples:
        return f"samples is {other.evaluated.samples}, not {first.evaluated.samples}"
    if _extractors(first.evaluated, metric) != _extractors(other.evaluated, metric):
        return "the extractors are not the same"
    published = [_published(model.evaluated, metric) for model in (other, first)]
    if published[0] != published[1]:
        theirs, ours = ("the training images" if each is None else f"statistics {each[:8]}" for each in published)
        return f"it is to {theirs}, not {ours}"
    return None


def _published(evaluated: Evaluated, metric: str) -> str | None:
    """Digest of the published statistics that a metric is to; None where it is to the training images."""
    score = evaluated.scores.get(metric)
    return score.protocol.reference if score and score.protocol else None


def _extractors(evaluated: Evaluated, metric: str) -> dict[str, str]:
    """Digest by name of the extractor of a sample metric; of all extractors for precision and recall."""
    known = {name: used.sha256 for name, used in evaluated.extractors.items()}
    name = "inception" if metric == "fid" else metric.partition("_")[2]
    return {name: known[name]} if name in known else known


def _paired(first: ComparedModel, other: ComparedModel, metric: str) -> tuple[float, float] | None:
    a, b = first.per_image.get(metric), other.per_image.get(metric)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    differences = b - a
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def read(folder: Path, name: str) -> ComparedModel:
    """Read the scores in an evaluation's folder, or in its evaluation.json or summary.json.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = folder if folder.is_file() else next((folder / each for each in FILES if (folder / each).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: no evaluation; allowed: a folder with {' or '.join(FILES)}")
    try:
        values: object = read_json(file)
        if not is_mapping(values) or "dataset_fingerprint" not in values:
            raise ValueError("no dataset_fingerprint")
        fingerprint, evaluated = str(values["dataset_fingerprint"]), evaluated_from_json(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not the output of an evaluation: {error}") from None
    return ComparedModel(name, fingerprint, evaluated, _per_image(file.parent / PER_IMAGE, fingerprint))


def _per_image(file: Path, fingerprint: str) -> dict[str, NDArray[np.float64]]:
    """Bits/dim of each held-out image by metric, float64 [N]; empty if the file is missing, spoilt or of other data."""
    from safetensors import SafetensorError, safe_open

    try:
        check_bytes(file.stat().st_size, MAX_JSON_BYTES)
        with safe_open(file, "numpy") as tensors:
            metadata: dict[str, str] = tensors.metadata() or {}
            if metadata["dataset_fingerprint"] != fingerprint:
                return {}
            nats_per_bit_per_dim = math.log(2) * int(metadata["dimensions"])
            nats = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return {}
    if nats_per_bit_per_dim <= 0 or any(each.ndim != 1 or each.dtype != np.float64 for each in nats.values()):
        return {}
    return {f"{name}_bpd": each / nats_per_bit_per_dim for name, each in nats.items()}
