"""What `python -m trainer.evaluate` is asked to score: a package, what it was trained on, and how. No torch."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from diffusion.config import ProcessConfig, SolverConfig, check_guidance, check_solver
from diffusion.config.solver import SOLVER_ADAPTER, limit_nfe
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig, Metric, check_curve, check_metrics, has_metric
from trainer.config.load import default_storage
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import check_sizes
from trainer.evaluate.extractors.requirements import check_extractors
from trainer.run.identity import read_run, read_summary


@dataclass(frozen=True)
class MlflowRef:
    """An MLflow run, and the server or database that has it."""

    tracking_uri: str
    run_id: str


@dataclass(frozen=True)
class EvaluationTarget:
    """A model, and how it is scored.

    Attributes:
        name: for people.
        package: its folder.
        data: what it was trained on.
        evaluation: how it is scored.
        out: the folder for what is found.
        storage: where data are prepared, unless they are there already.
        mlflow_run: where MLflow has the run that trained it; None where it has not.
    """

    name: str
    package: Path
    data: DataConfig
    evaluation: EvaluationConfig
    out: Path
    storage: Path
    mlflow_run: MlflowRef | None = None

    @property
    def network(self) -> str:
        """The kind of its network."""
        return self._config["network"]["kind"]

    @property
    def process(self) -> ProcessConfig:
        """Its forward process."""
        return TypeAdapter[ProcessConfig](ProcessConfig).validate_json(json.dumps(self._config["process"]))

    @property
    def _config(self) -> dict[str, Any]:
        return json.loads((self.package / "config.json").read_text())

    def check(self, info: DatasetInfo) -> None:
        """Refuse a package that is not whole, and data that are not of its kind.

        Raises:
            InputError: naming what does not fit.
        """
        from diffusion.package import verify_package

        try:
            verify_package(self.package)
        except ValueError as error:
            raise InputError(f"MODEL: {error}") from None
        check_sizes(self.evaluation, info)
        check_extractors(self.evaluation)
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
        except ValueError as error:
            raise InputError(str(error)) from None


def find_target(
    model: str, uri: str | None, from_registry: "Callable[[str, str, str | None], EvaluationTarget]"
) -> EvaluationTarget:
    """The target that MODEL names, as its run was evaluated.

    Raises:
        InputError: there is none.
    """
    folder = Path(model)
    if (folder / "run.json").is_file():
        return _of_run(folder)
    if (folder / "manifest.json").is_file():
        if folder.name == "package" and (folder.parent / "run.json").is_file():
            return _of_run(folder.parent)
        return EvaluationTarget(model, folder, DataConfig(source="?"), _packaged(folder), Path(), default_storage())
    name, at, alias = model.partition("@")
    if folder.exists() or not (at and name and alias):
        raise InputError(
            f"MODEL = {model!r}: no model; allowed: the folder of a run or of a package, or NAME@alias of the registry"
        )
    return from_registry(name, alias, uri)


def _of_run(run: Path) -> EvaluationTarget:
    config, paths = read_run(run)
    if not paths.package.is_dir():
        raise InputError(f"MODEL = {run}: has no package yet; allowed: a run that was trained to its end")
    out = (run / "evaluation").absolute()
    storage = Path(str(config.run.storage))
    summary = read_summary(paths)
    run_id = summary.registration.run_id if summary else None
    mlflow_run = MlflowRef(str(config.run.tracking_uri), run_id) if run_id and config.run.tracking_uri else None
    name = str(config.run.name)
    return EvaluationTarget(name, paths.package.absolute(), config.data, config.evaluation, out, storage, mlflow_run)


def _packaged(package: Path) -> EvaluationConfig:
    """The default evaluation, by the package's own solver."""
    try:
        solver = json.loads((package / "config.json").read_text())["solver"]
        return EvaluationConfig.model_validate_json(json.dumps({"solver": solver}))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"MODEL = {package}: not a whole package: {str(error).splitlines()[0]}") from None


def with_options(target: EvaluationTarget, options: argparse.Namespace) -> EvaluationTarget:
    """The target as the command line changes it.

    Raises:
        InputError: a folder or data must be named, or there is no such solver.
        ValidationError: of a setting.
    """
    values = target.evaluation.model_dump(mode="json") | _changes(target, options)
    if options.solver is not None or options.nfe is not None:
        values["solver"] = _solver(target.evaluation.solver, options.solver, options.nfe).model_dump(mode="json")
    evaluation = EvaluationConfig.model_validate_json(json.dumps(values))
    data = target.data if options.data is None else DataConfig(source=options.data)
    if data.source == "?":
        raise InputError("--data: the package does not say what it was trained on; allowed: a data source")
    if options.out is None and target.out == Path():
        raise InputError("--out: a folder for what is found must be named where MODEL is no run's folder")
    return replace(target, evaluation=evaluation, data=data, out=(options.out or target.out).absolute())


def _changes(target: EvaluationTarget, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the evaluation that are given, but for the solver."""
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
    return {name: value for name, value in given.items() if value is not None}


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{option} = {text}; allowed: whole numbers with commas between, such as 5,10,20") from None


def _solver(own: SolverConfig, kind: str | None, nfe: int | None) -> SolverConfig:
    """The named solver with its defaults, or the model's own, at so many evaluations or the next number below."""
    values = own.model_dump(mode="json") if kind in (None, own.kind) else {"kind": kind}
    solver = SOLVER_ADAPTER.validate_json(json.dumps(values))
    if nfe is None:
        return solver
    try:
        return limit_nfe(solver, nfe)
    except ValueError as error:
        raise InputError(f"--nfe = {error}") from None
