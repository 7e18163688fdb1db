"""The results of an evaluation and the summary of a run, as typed values and as JSON.

In a file, a score is flat: its value under the metric's name, its standard error and standard deviation over seeds
under `<name>_se` and `<name>_sd`. `protocol` says how each score was measured; files of earlier versions lack it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from diffusion.config.errors import shown

LIKELIHOODS = ("vlb_bpd", "continuous_vlb_bpd", "nll_bpd")
ERROR, SPREAD = "_se", "_sd"

Replicate = Literal["images", "seeds", "blocks"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How a score was measured; two scores can be compared if their protocols agree.

    Attributes:
        samples: number of samples per seed, N; None for likelihoods.
        sampler: the solver and its settings, as canonical JSON; None for likelihoods.
        extractors: name of a feature extractor -> its digest; empty for likelihoods.
        log_snr_ends: highest and lowest log-SNR of the integral; None for the discrete bound and for samples.
        reference: digest of the published statistics that a distance is to; None where it is to the training images.
    """

    samples: int | None = None
    sampler: str | None = None
    extractors: Mapping[str, str] = field(default_factory=dict[str, str])
    log_snr_ends: tuple[float, float] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value and its uncertainty.

    Attributes:
        value: in the metric's unit: bits/dim for likelihoods, squared distance for features, a fraction for rates.
        se: standard error of `value`; None where there is none.
        df: degrees of freedom of the standard error.
        n: number of replicates.
        replicate: what was replicated: held-out `images`, `seeds` of samples, or `blocks` of one set of samples.
        sd: standard deviation over seeds.
        protocol: how the score was measured; None where the file does not say.
    """

    value: float
    se: float | None = None
    df: int | None = None
    n: int | None = None
    replicate: Replicate | None = None
    sd: float | None = None
    protocol: Protocol | None = None

    def __str__(self) -> str:
        """The value and its standard error, to four significant digits."""
        return f"{self.value:.4g}" + ("" if self.se is None else f" +- {self.se:.2g}")


Scores = Mapping[str, Score]


@dataclass(frozen=True)
class ExtractorUsed:
    """A feature extractor that an evaluation used.

    Attributes:
        sha256: digest of everything but the pixels that its features depend on.
        heldout_accuracy: a classifier's accuracy on held-out images, in 0..1; None for other extractors.
    """

    sha256: str
    heldout_accuracy: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A Frechet distance `value`, its standard error, and the number of network evaluations per sample `nfe`."""

    nfe: int
    value: float
    se: float | None = None


@dataclass(frozen=True)
class ClassCounts:
    """Images per class, as a classifier labels them, in the samples, the training images and the held-out images."""

    samples: tuple[int, ...]
    train: tuple[int, ...]
    heldout: tuple[int, ...]


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation.

    Attributes:
        scores: metric name -> score.
        samples: number of samples per seed; None where no samples were drawn.
        extractors: extractor name -> the extractor that was used.
        frechet_at_nfe: metric name -> the Frechet distance at increasing numbers of network evaluations.
        classes: images per class; None where no classifier was used.
        notes: remarks for the reader, one sentence each.
    """

    __pydantic_config__ = ConfigDict(strict=True, revalidate_instances="always")

    scores: Scores
    samples: int | None = None
    extractors: Mapping[str, ExtractorUsed] = field(default_factory=dict[str, ExtractorUsed])
    frechet_at_nfe: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict[str, tuple[CurvePoint, ...]])
    classes: ClassCounts | None = None
    notes: tuple[str, ...] = ()

    def score(self, metric: str) -> Score | None:
        """A metric's score, for comparisons; None if it was not measured or is not finite.

        A standard error that is not finite is replaced by None.
        """
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


EVALUATED = TypeAdapter(Evaluated)


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
    """Metric name -> how the score was measured, as JSON."""
    entries: Json = {}
    for name, score in scores.items():
        entry = _without_none({"replicate": score.replicate, "n": score.n, "df": score.df})
        if score.protocol is not None:
            protocol = _without_none(asdict(score.protocol))
            if ends := score.protocol.log_snr_ends:
                protocol["log_snr_ends"] = list(ends)
            entry |= {key: value for key, value in protocol.items() if value}
        if entry:
            entries[name] = entry
    return entries


def evaluated_from_json(values: Mapping[str, Any]) -> Evaluated:
    """The results in the JSON of an evaluation or of a run's summary; other keys of the file are ignored.

    Raises:
        TypeError, KeyError, ValueError: the values are not an evaluation's.
    """
    protocols: Mapping[str, Json] = values.get("protocol", {})
    names = [name for name, value in values.items() if isinstance(value, float) and name != "images_per_second"]
    names += [name for name in protocols if values.get(name, 0.0) is None]  # JSON has no NaN
    derived = {f"{name}{suffix}" for name in names for suffix in (ERROR, SPREAD)}
    classes = values.get("classes")
    found = Evaluated(
        scores={name: _score(name, values, protocols.get(name, {})) for name in names if name not in derived},
        samples=values.get("samples"),
        extractors={name: ExtractorUsed(**_numbers(used)) for name, used in values.get("extractors", {}).items()},
        frechet_at_nfe={
            name: tuple(CurvePoint(**_numbers(point)) for point in points)
            for name, points in values.get("frechet_at_nfe", {}).items()
        },
        classes=None if classes is None else ClassCounts(**{name: tuple(each) for name, each in classes.items()}),
        notes=tuple(values.get("notes", ())),
    )
    try:
        return EVALUATED.validate_python(found)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{name} = {shown(problem['input'])}: {problem['msg']}") from None


def _numbers(values: Mapping[str, Any]) -> Json:
    """The values as they were: what was left out was None, and null was not finite."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _score(name: str, values: Mapping[str, Any], entry: Json) -> Score:
    replicates = {key: entry[key] for key in ("replicate", "n", "df") if key in entry}
    value = math.nan if values[name] is None else values[name]
    score = Score(value, se=values.get(f"{name}{ERROR}"), sd=values.get(f"{name}{SPREAD}"), **replicates)
    if not entry:
        return score
    ends = cast("list[float] | None", entry.get("log_snr_ends"))
    protocol = Protocol(
        samples=entry.get("samples"),
        sampler=entry.get("sampler"),
        extractors=entry.get("extractors", {}),
        log_snr_ends=None if ends is None else (ends[0], ends[1]),
        reference=entry.get("reference"),
    )
    return replace(score, protocol=protocol)


@dataclass(frozen=True)
class GateDecision:
    """The registry gate's decision on a version: the alias at stake, and the reason."""

    alias: str
    reason: str


@dataclass(frozen=True)
class Registration:
    """Where MLflow keeps a run and its model; all None until MLflow has answered.

    Attributes:
        run_id: id of the MLflow run.
        model_uri: URI of the logged or registered model.
        registered_model: name of the registered model; None where the run registers none.
        registered_version: number of the registered version.
        alias: alias that the version was given.
        gate: the gate's decision on the version.
        recorded: whether everything has been uploaded.
    """

    run_id: str | None = None
    model_uri: str | None = None
    registered_model: str | None = None
    registered_version: int | None = None
    alias: str | None = None
    gate: GateDecision | None = None
    recorded: bool = False


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: `results/summary.json`.

    Attributes:
        name: the run's name.
        experiment: the experiment that the run belongs to.
        step: training steps of the packaged weights.
        package_sha256: SHA-256 of the package.
        config_sha256: SHA-256 of the whole configuration.
        method_sha256: SHA-256 of the settings that decide the result.
        dataset_fingerprint: SHA-256 of the prepared data set.
        evaluated: results of the package's evaluation.
        images_per_second: training images per second, the harmonic mean over all logged windows.
        seconds: duration in seconds of `startup`, `training` and `evaluation`, of those that the last process did.
        utilisation: mean over the logged windows of `mfu`, `waited_for_data` and each `system/…` that MLflow draws.
        registration: where MLflow keeps the run and its model.
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
    utilisation: Mapping[str, float] = field(default_factory=dict[str, float])

    def metrics(self) -> dict[str, float]:
        """Every number that a tracker draws, by its name there."""
        seconds = {f"seconds.{name}": value for name, value in self.seconds.items()}
        return {**self.evaluated.metrics(), "images_per_second": self.images_per_second, **seconds}

    def to_json(self) -> Json:
        """The JSON object of `summary.json`."""
        values = {name: getattr(self, name) for name in IDENTITY}
        speed: Json = {"images_per_second": self.images_per_second, "seconds": dict(self.seconds)}
        if self.utilisation:  # a run of an earlier version has none, and is written as it was
            speed["utilisation"] = dict(self.utilisation)
        return {**values, **self.evaluated.to_json(), **speed, **asdict(self.registration)}


IDENTITY = ("name", "experiment", "step", "package_sha256", "config_sha256", "method_sha256", "dataset_fingerprint")
REGISTRATION = ("run_id", "model_uri", "registered_model", "registered_version", "alias", "recorded")


def summary_from_json(values: Mapping[str, Any]) -> RunSummary:
    """The summary in the JSON of a `summary.json`.

    Raises:
        TypeError, KeyError, ValueError: the values are not a run's summary.
    """
    gate: Json | None = values.get("gate")  # runs of earlier versions have none
    return RunSummary(
        **{name: values[name] for name in IDENTITY},
        evaluated=evaluated_from_json(values),
        images_per_second=values["images_per_second"],
        seconds=values["seconds"],
        utilisation=values.get("utilisation", {}),
        registration=Registration(
            **{name: values[name] for name in REGISTRATION}, gate=None if gate is None else GateDecision(**gate)
        ),
    )
