"""What `python -m trainer.evaluate` evaluates: a package, its data set, and the settings. No torch."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from diffusion.command import printable
from diffusion.config import Autoguidance, ClassifierFree, ProcessConfig, SolverConfig, check_guidance, check_solver
from diffusion.config.solver import SOLVER_ADAPTER, check_evaluations, limit_nfe
from diffusion.private_folder import is_ours
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig, Metric, check_curve, check_metrics, has_metric
from trainer.config.load import default_storage
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import check_sample_memory, check_sizes
from trainer.evaluate.extractors.requirements import check_extractors
from trainer.files import read_json
from trainer.run.identity import read_run, read_summary, trained_on as run_trained_on
from trainer.run.paths import RunPaths

BUILT_IN = ("digits",)  # data sets that are no files of anybody
MAX_SIDE = 256  # in pixels, of images that somebody else would have those of 8 x 8 enlarged to


@dataclass(frozen=True)
class MlflowRef:
    """Reference to an MLflow run: its server or database, and its id."""

    tracking_uri: str
    run_id: str


@dataclass(frozen=True)
class EvaluationTarget:
    """A model, and how it is evaluated.

    Attributes:
        name: shown to users.
        package: folder of the package.
        data: settings of the data set.
        evaluation: settings of the evaluation.
        out: output folder.
        storage: folder of prepared data sets.
        mlflow_run: the MLflow run that trained it; None if there is none.
        any_data: whether the data were named for this evaluation, and need not be those that it was trained on.
        of_others: whether somebody else chose its solver and at which numbers of evaluations samples are scored.
        samples_of_others: whether somebody else chose how many samples there are.
    """

    name: str
    package: Path
    data: DataConfig
    evaluation: EvaluationConfig
    out: Path
    storage: Path
    mlflow_run: MlflowRef | None = None
    any_data: bool = False
    of_others: bool = False
    samples_of_others: bool = False

    @property
    def network(self) -> str:
        """Kind of its network, from the package."""
        return self._config["network"]["kind"]

    @property
    def process(self) -> ProcessConfig:
        """Its forward process, from the package."""
        return TypeAdapter[ProcessConfig](ProcessConfig).validate_json(json.dumps(self._config["process"]))

    @property
    def _config(self) -> dict[str, Any]:
        return read_json(self.package / "config.json")

    @property
    def unsaid(self) -> str | None:
        """What the package does not say, and guidance needs; None if it says, or nothing depends on it."""
        if not isinstance(self.evaluation.guidance, ClassifierFree) or "null_label_trained" in self._config:
            return None
        return (
            "the package does not say whether its network was also trained without labels (objective.label_dropout); "
            "if it was not, classifier-free guidance spoils its samples"
        )

    def _check_null_label(self) -> None:
        """Refuse classifier-free guidance where the package says that its network cannot do without labels.

        Raises:
            ValueError: it says so.
        """
        if isinstance(self.evaluation.guidance, ClassifierFree) and self._config.get("null_label_trained") is False:
            raise ValueError(
                "evaluation.guidance.kind = classifier_free: the model was never trained without labels "
                "(objective.label_dropout = 0); allowed: none, or autoguidance"
            )

    def data_difference(self, info: DatasetInfo) -> str | None:
        """In what the data differ from those that the model was trained on; None if they are the same, or unknown."""
        from diffusion.package import trained_on

        known = trained_on(self.package) or run_trained_on(RunPaths(self.package.parent))
        if known in (None, info.fingerprint):
            return None
        return (
            f"data.source = {self.data.source!r}: not the data that the model was trained on: their fingerprint was "
            f"{known[:16]} and is {info.fingerprint[:16]}"
        )

    def check(self, info: DatasetInfo) -> None:
        """Refuse an incomplete package, and data or settings that do not fit the model.

        Raises:
            InputError: names what does not fit.
        """
        from diffusion.package import verify_package
        from trainer.evaluate.references.published import check_published

        try:
            verify_package(self.package)
        except ValueError as error:
            raise InputError(f"MODEL: {error}") from None
        if not self.any_data and (difference := self.data_difference(info)):
            raise InputError(f"{difference}; allowed: those, or other data named with --data")
        check_sizes(self.evaluation, info)
        if self.samples_of_others:
            check_sample_memory(self.evaluation, info)
        check_extractors(self.evaluation)
        check_published(self.evaluation, info)
        shape, classes = tuple(self._config["image_shape"]), self._config["network"]["classes"]
        if shape != info.image_shape:
            raise InputError(
                f"data.source = {self.data.source!r}: images of {info.image_shape}; allowed: {shape}, the model's"
            )
        if classes not in (0, info.classes):
            raise InputError(
                f"data.source = {self.data.source!r}: {info.classes or 'no'} classes; allowed: {classes}, the model's"
            )
        process = self.process
        try:
            check_solver(process, self.evaluation.solver)
            check_metrics(process, self.evaluation.metrics)
            check_curve(process, self.evaluation)
            check_guidance(self.evaluation.guidance, classes)
            self._check_null_label()
        except ValueError as error:
            raise InputError(str(error)) from None


def find_target(
    model: str,
    uri: str | None,
    from_registry: "Callable[[str, str, str | None], EvaluationTarget]",
    trusted: bool = False,
) -> EvaluationTarget:
    """The model that MODEL names, with the settings of its run's own evaluation.

    Args:
        model: the command line argument.
        uri: MLflow tracking URI of the registry, as given; None for the default.
        from_registry: looks up a name, an alias and the URI in the registry.
        trusted: whether the settings of a run are taken whoever wrote them.

    Raises:
        InputError: there is no such model.
    """
    folder = Path(model)
    if "@" in model and "/" not in model and folder.exists():
        raise InputError(
            f"MODEL = {model!r}: a folder, and a name of the registry; allowed: ./{model} for the folder, or another "
            "working directory"
        )
    if (folder / "run.json").is_file():
        return _of_run(folder, trusted)
    if (folder / "manifest.json").is_file():
        if folder.name == "package" and (folder.parent / "run.json").is_file():
            return _of_run(folder.parent, trusted)
        data = DataConfig(source="?")
        return EvaluationTarget(model, folder, data, _packaged(folder), Path(), default_storage(), of_others=True)
    name, at, alias = model.partition("@")
    if folder.exists() or not (at and name and alias):
        raise InputError(
            f"MODEL = {model!r}: no model; allowed: the folder of a run or of a package, or NAME@alias of the registry"
        )
    return from_registry(name, alias, uri)


def _of_run(run: Path, trusted: bool) -> EvaluationTarget:
    config, paths = read_run(run)
    if not paths.package.is_dir():
        raise InputError(f"MODEL = {run}: has no package yet; allowed: a run whose training has finished")
    if not (trusted or (is_ours(paths.identity) and is_ours(paths.root.resolve()))):
        return _of_others(run, config, paths)
    out = (run / "evaluation").absolute()
    storage = Path(str(config.run.storage))
    summary = read_summary(paths)
    run_id = summary.registration.run_id if summary else None
    mlflow_run = MlflowRef(str(config.run.tracking_uri), run_id) if run_id and config.run.tracking_uri else None
    name = str(config.run.name)
    return EvaluationTarget(name, paths.package.absolute(), config.data, config.evaluation, out, storage, mlflow_run)


def _of_others(run: Path, config: RunConfig, paths: RunPaths) -> EvaluationTarget:
    """A run that another user can have written: its settings choose no files, no folders and no servers."""
    data, evaluation, notes = without_paths(config)
    for note in (f"{run} is another user's, or others can write to it; --trust-run takes its settings", *notes):
        print(f"note: {printable(note)}", file=sys.stderr)
    name, package = str(config.run.name), paths.package.absolute()
    return EvaluationTarget(name, package, data, evaluation, Path(), default_storage(), of_others=True)


def _packaged(package: Path) -> EvaluationConfig:
    """The default settings of an evaluation, with the package's own solver."""
    from diffusion.package import check_files

    try:
        check_files(package)
        solver = json.loads((package / "config.json").read_text())["solver"]
        return EvaluationConfig.model_validate_json(json.dumps({"solver": solver}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"MODEL = {package}: not a complete package: {str(error).splitlines()[0]}") from None


def without_paths(config: RunConfig) -> tuple[DataConfig, EvaluationConfig, list[str]]:
    """The settings of somebody else's configuration, without those that name files of whoever reads them.

    Whoever can write to the registry, or to the run's folder, chose them: data would be read, and an extractor even
    run, as somebody else.

    Returns:
        The data, with source `?` where they have to be named; the evaluation; and what was left out, for people.
    """
    data, evaluation, notes = config.data, config.evaluation, list[str]()
    if data.source not in BUILT_IN:
        notes.append(f"its settings say that it was trained on {data.source!r}; data are read from --data alone")
        data = DataConfig(source="?")
    elif (data.size or 0) > MAX_SIDE:
        notes.append(f"its settings enlarge {data.source} to {data.size} pixels; data are read from --data alone")
        data = DataConfig(source="?")
    if evaluation.inception_file is not None or "inception" in evaluation.extractors:
        notes.append("its settings name a file for inception; it is used with --inception-file alone")
        others = tuple(name for name in evaluation.extractors if name != "inception")
        evaluation = evaluation.model_copy(
            update={"extractors": others or ("classifier",), "inception_file": None, "inception_sha256": None}
        )
    if evaluation.reference is not None:
        notes.append("its settings name a file of reference statistics; one is used with --reference alone")
        evaluation = evaluation.model_copy(update={"reference": None})
    if isinstance(evaluation.guidance, Autoguidance):
        notes.append("its settings name a folder of a weaker model to be guided by; it is evaluated without guidance")
        evaluation = evaluation.model_copy(update={"guidance": None})
    return data, evaluation, notes


def with_options(target: EvaluationTarget, options: argparse.Namespace) -> EvaluationTarget:
    """Apply the command line options to the target.

    Raises:
        InputError: an output folder or a data source is missing, a solver is invalid, or one that somebody else chose
            would not come to an end.
        ValidationError: another setting is invalid.
    """
    values = target.evaluation.model_dump(mode="json") | _changes(target, options)
    if options.solver is not None or options.nfe is not None:
        values["solver"] = _solver(target.evaluation.solver, options.solver, options.nfe).model_dump(mode="json")
    evaluation = EvaluationConfig.model_validate_json(json.dumps(values))
    if target.of_others:
        _check_ends(evaluation, options)
    data = target.data if options.data is None else DataConfig(source=options.data)
    if data.source == "?":
        raise InputError("--data: the package does not name its data source; allowed: a data source")
    if options.out is None and target.out == Path():
        raise InputError("--out: missing; allowed: an output folder, required unless MODEL is the folder of a run")
    out = (options.out or target.out).absolute()
    theirs = target.of_others and options.samples is None
    named = options.data is not None
    return replace(target, evaluation=evaluation, data=data, out=out, any_data=named, samples_of_others=theirs)


def _check_ends(evaluation: EvaluationConfig, options: argparse.Namespace) -> None:
    """Refuse what is not from the command line, and evaluates the network too often for an image."""
    try:
        if options.solver is None and options.nfe is None:
            check_evaluations(evaluation.solver)
        if options.nfe_curve is None:
            for nfe in evaluation.nfe_curve:
                check_evaluations(limit_nfe(evaluation.solver, nfe))
    except ValueError as error:
        raise InputError(f"{error}; or --solver, --nfe and --nfe-curve of your own") from None


def _changes(target: EvaluationTarget, options: argparse.Namespace) -> dict[str, Any]:
    """The given settings of the evaluation, except for the solver."""
    words = {name: getattr(options, name) for name in ("metrics", "extractors", "nfe_curve")}
    given = {name: getattr(options, name) for name in ("samples", "seeds", "seed")}
    given |= {name: text.split(",") for name, text in words.items() if text is not None}
    if options.metrics == "all":
        given["metrics"] = [name for name in get_args(Metric) if has_metric(target.process, name)]
    if options.nfe_curve is not None:
        given["nfe_curve"] = _numbers("--nfe-curve", options.nfe_curve)
    if options.inception_file is not None:
        given["inception_file"] = str(Path(options.inception_file).absolute())
        given.setdefault("extractors", [*target.evaluation.extractors, "inception"])
    if options.reference is not None:
        given["reference"] = str(Path(options.reference).absolute())
    return {name: value for name, value in given.items() if value is not None}


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{option} = {text}; allowed: whole numbers separated by commas, such as 5,10,20") from None


def _solver(own: SolverConfig, kind: str | None, nfe: int | None) -> SolverConfig:
    """The named solver with its defaults, or the model's own, with at most `nfe` network evaluations."""
    solver = own if kind is None else SOLVER_ADAPTER.validate_json(json.dumps({"kind": kind}))
    if nfe is None:
        return solver
    try:
        return limit_nfe(solver, nfe)
    except ValueError as error:
        raise InputError(f"--nfe = {error}") from None
