"""What was measured of a model, with types, and the JSON that it is kept as.

In a file a score is flat: its value under the metric's name, its standard error and the spread over seeds beside it
under `<name>_se` and `<name>_sd`. How each was measured stands apart, under `protocol`, which earlier files lack.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

LIKELIHOODS = ("vlb_bpd", "continuous_vlb_bpd", "nll_bpd")
ERROR, SPREAD = "_se", "_sd"

Replicate = Literal["images", "seeds", "blocks"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How a score was measured: two scores can be compared where these agree.

    Attributes:
        samples: number of samples of each seed, N; None for likelihoods.
        sampler: the solver and its settings, as canonical JSON; None for likelihoods.
        extractors: digests of what the features come from, by name; empty for likelihoods.
        log_snr_ends: highest and lowest log-SNR that was integrated between; None for the discrete bound and samples.
    """

    samples: int | None = None
    sampler: str | None = None
    extractors: Mapping[str, str] = field(default_factory=dict)
    log_snr_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value, and how well it is known.

    Attributes:
        value: in the metric's unit: bits/dim of likelihoods, squared distance of features, fractions.
        se: its standard error; None where there is none.
        df: degrees of freedom of that error.
        n: number of replicates.
        replicate: what was replicated: held-out `images`, `seeds` of samples, or `blocks` of one set of samples.
        sd: the standard deviation over seeds.
        protocol: how it was measured; None where the file does not say.
    """

    value: float
    se: float | None = None
    df: int | None = None
    n: int | None = None
    replicate: Replicate | None = None
    sd: float | None = None
    protocol: Protocol | None = None

    def __str__(self) -> str:
        """The value with its standard error, for people."""
        return f"{self.value:.4g}" + ("" if self.se is None else f" +- {self.se:.2g}")


Scores = Mapping[str, Score]


@dataclass(frozen=True)
class ExtractorUsed:
    """A feature extractor of an evaluation.

    Attributes:
        sha256: digest of all that its features depend on beside the pixels.
        heldout_accuracy: of a classifier, on held-out images, in 0..1.
    """

    sha256: str
    heldout_accuracy: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A Frechet distance at a number of network evaluations for each sample, with its standard error."""

    nfe: int
    value: float
    se: float | None = None


@dataclass(frozen=True)
class ClassCounts:
    """How many images of each class a classifier sees in a set of samples, the training and the held-out images."""

    samples: tuple[int, ...]
    train: tuple[int, ...]
    heldout: tuple[int, ...]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found of a model.

    Attributes:
        scores: by metric name.
        samples: number of samples of each seed; None where none were drawn.
        extractors: by name.
        frechet_at_nfe: by metric name: the distance against network evaluations, in their order.
        classes: where a classifier was used.
        notes: what a reader should know, one sentence each.
    """

    scores: Scores
    samples: int | None = None
    extractors: Mapping[str, ExtractorUsed] = field(default_factory=dict)
    frechet_at_nfe: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    classes: ClassCounts | None = None
    notes: tuple[str, ...] = ()

    def score(self, metric: str) -> Score | None:
        """A metric that can be compared; None where it was not measured or is not finite, as is its error then."""
        score = self.scores.get(metric)
        if score is None or not math.isfinite(score.value):
            return None
        return score if score.se is None or math.isfinite(score.se) else replace(score, se=None)

    def metrics(self) -> dict[str, float]:
        """Every number that a tracker draws, by its name there."""
        accuracies = {
            f"extractors.{name}.heldout_accuracy": used.heldout_accuracy
            for name, used in self.extractors.items()
            if used.heldout_accuracy is not None
        }
        return self.numbers() | accuracies

    def numbers(self) -> dict[str, float]:
        """Values, standard errors and spreads over seeds, by their names in the file."""
        return dict(_flat(self.scores))

    def to_json(self) -> Json:
        """The JSON object, from which `evaluated_from_json` makes this again."""
        values: Json = dict(self.numbers())
        if self.samples is not None:
            values |= {
                "samples": self.samples,
                "extractors": {name: _without_none(asdict(used)) for name, used in self.extractors.items()},
                "frechet_at_nfe": {
                    name: [_without_none(asdict(point)) for point in points]
                    for name, points in self.frechet_at_nfe.items()
                },
            }
        if self.classes is not None:
            values["classes"] = {name: list(counts) for name, counts in asdict(self.classes).items()}
        if self.notes:
            values["notes"] = list(self.notes)
        protocol = _protocol_to_json(self.scores)
        return values | ({"protocol": protocol} if protocol else {})


def _flat(scores: Scores) -> Iterator[tuple[str, float]]:
    for name, score in scores.items():
        yield name, score.value
        if score.se is not None:
            yield f"{name}{ERROR}", score.se
        if score.sd is not None:
            yield f"{name}{SPREAD}", score.sd


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _protocol_to_json(scores: Scores) -> Json:
    """How each score was measured, by its name."""
    told: Json = {}
    for name, score in scores.items():
        entry = _without_none({"replicate": score.replicate, "n": score.n, "df": score.df})
        if score.protocol is not None:
            protocol = _without_none(asdict(score.protocol))
            entry |= {
                key: list(value) if isinstance(value, tuple) else value for key, value in protocol.items() if value
            }
        if entry:
            told[name] = entry
    return told


def evaluated_from_json(values: Mapping[str, Any]) -> Evaluated:
    """What a file of an evaluation or of a run's summary says was found; other keys of the file are passed over.

    Raises:
        TypeError, KeyError, ValueError: not what an evaluation leaves.
    """
    told: Mapping[str, Json] = values.get("protocol", {})
    names = [name for name, value in values.items() if isinstance(value, float) and name != "images_per_second"]
    derived = {f"{name}{suffix}" for name in names for suffix in (ERROR, SPREAD)}
    classes = values.get("classes")
    return Evaluated(
        scores={name: _score(name, values, told.get(name, {})) for name in names if name not in derived},
        samples=values.get("samples"),
        extractors={name: ExtractorUsed(**used) for name, used in values.get("extractors", {}).items()},
        frechet_at_nfe={
            name: tuple(CurvePoint(**point) for point in points)
            for name, points in values.get("frechet_at_nfe", {}).items()
        },
        classes=None if classes is None else ClassCounts(**{name: tuple(each) for name, each in classes.items()}),
        notes=tuple(values.get("notes", ())),
    )


def _score(name: str, values: Mapping[str, Any], told: Json) -> Score:
    kept = {key: told[key] for key in ("replicate", "n", "df") if key in told}
    score = Score(values[name], se=values.get(f"{name}{ERROR}"), sd=values.get(f"{name}{SPREAD}"), **kept)
    if not told:
        return score
    ends = cast("list[float] | None", told.get("log_snr_ends"))
    protocol = Protocol(
        samples=told.get("samples"),
        sampler=told.get("sampler"),
        extractors=told.get("extractors", {}),
        log_snr_ends=None if ends is None else (ends[0], ends[1]),
    )
    return replace(score, protocol=protocol)


@dataclass(frozen=True)
class GateSaid:
    """What the gate of the registry decided about a version: for which alias, and why or why not."""

    alias: str
    reason: str


@dataclass(frozen=True)
class Registration:
    """Where MLflow has a run and its model; all None until it has answered.

    Attributes:
        run_id: of the MLflow run.
        model_uri: of the logged or registered model.
        registered_model: its name in the registry, where the run asks for that.
        registered_version: its number there.
        alias: that the version was given.
        gate: what was decided.
        recorded: whether everything has been uploaded.
    """

    run_id: str | None = None
    model_uri: str | None = None
    registered_model: str | None = None
    registered_version: int | None = None
    alias: str | None = None
    gate: GateSaid | None = None
    recorded: bool = False


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: `results/summary.json`.

    Attributes:
        name: of the run.
        experiment: of the run.
        step: training steps of the packaged weights.
        package_sha256: digest of the package.
        config_sha256: digest of the whole configuration.
        method_sha256: digest of what decides the result.
        dataset_fingerprint: of the data set.
        evaluated: what was found of the package.
        images_per_second: training images a second, the harmonic mean over all logged windows.
        seconds: how long `startup`, `training` and `evaluation` took, of those that the last process did.
        registration: where MLflow has it.
    """

    name: str
    experiment: str
    step: int
    package_sha256: str
    config_sha256: str
    method_sha256: str
    dataset_fingerprint: str
    evaluated: Evaluated
    images_per_second: float
    seconds: Mapping[str, float]
    registration: Registration = Registration()

    def metrics(self) -> dict[str, float]:
        """Every number that a tracker draws, by its name there."""
        seconds = {f"seconds.{name}": value for name, value in self.seconds.items()}
        return {**self.evaluated.metrics(), "images_per_second": self.images_per_second, **seconds}

    def to_json(self) -> Json:
        """The JSON object of `summary.json`."""
        values = {name: getattr(self, name) for name in IDENTITY}
        speed = {"images_per_second": self.images_per_second, "seconds": dict(self.seconds)}
        return {**values, **self.evaluated.to_json(), **speed, **asdict(self.registration)}


IDENTITY = ("name", "experiment", "step", "package_sha256", "config_sha256", "method_sha256", "dataset_fingerprint")
REGISTRATION = ("run_id", "model_uri", "registered_model", "registered_version", "alias", "recorded")


def summary_from_json(values: Mapping[str, Any]) -> RunSummary:
    """What a `summary.json` says.

    Raises:
        TypeError, KeyError, ValueError: not what a run leaves.
    """
    gate: Json | None = values.get("gate")  # runs of earlier versions have none
    return RunSummary(
        **{name: values[name] for name in IDENTITY},
        evaluated=evaluated_from_json(values),
        images_per_second=values["images_per_second"],
        seconds=values["seconds"],
        registration=Registration(
            **{name: values[name] for name in REGISTRATION}, gate=None if gate is None else GateSaid(**gate)
        ),
    )
