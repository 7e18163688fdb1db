"""What `python -m trainer.evaluate` is asked to score: a package, what it was trained on, and how. No torch."""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from diffusion.config import ProcessConfig, SolverConfig, check_guidance, check_solver, evaluations
from trainer.config import DataConfig, EvaluationConfig, RunConfig, check_metrics
from trainer.data.info import DatasetInfo
from trainer.settings import InputError
from trainer.state import read_run


@dataclass(frozen=True)
class Subject:
    """A model, and how it is scored.

    Attributes:
        name: for people.
        package: its folder.
        data: what it was trained on.
        evaluation: how it is scored.
        out: the folder for what is found.
        storage: where data are prepared, unless they are there already.
    """

    name: str
    package: Path
    data: DataConfig
    evaluation: EvaluationConfig
    out: Path
    storage: Path

    @property
    def network(self) -> str:
        """The kind of its network."""
        return self._config["network"]["kind"]

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
        shape, classes = tuple(self._config["image_shape"]), self._config["network"]["classes"]
        if shape != info.image_shape:
            raise InputError(
                f"data.source = {self.data.source!r}: images of {info.image_shape}; allowed: {shape}, the model's"
            )
        if classes not in (0, info.classes):
            raise InputError(
                f"data.source = {self.data.source!r}: {info.classes or 'no'} classes; allowed: {classes}, the model's"
            )
        process: ProcessConfig = TypeAdapter(ProcessConfig).validate_json(json.dumps(self._config["process"]))
        try:
            check_solver(process, self.evaluation.solver)
            check_metrics(process, self.evaluation.metrics)
            check_guidance(self.evaluation.guidance, classes)
        except ValueError as error:
            raise InputError(str(error)) from None


def find(model: str, tracking_uri: str | None) -> Subject:
    """The subject that MODEL names, as its run was evaluated.

    Raises:
        InputError: there is none.
    """
    folder = Path(model)
    if (folder / "run.json").is_file():
        return _of_run(folder)
    if (folder / "manifest.json").is_file():
        if folder.name == "package" and (folder.parent / "run.json").is_file():
            return _of_run(folder.parent)
        return Subject(model, folder, DataConfig(source="?"), _packaged(folder), Path(), _storage())
    name, at, alias = model.partition("@")
    if folder.exists() or not (at and name and alias):
        raise InputError(
            f"MODEL = {model!r}: no model; allowed: the folder of a run or of a package, or NAME@alias of the registry"
        )
    return _registered(name, alias, tracking_uri)


def _of_run(run: Path) -> Subject:
    config, paths = read_run(run)
    if not paths.package.is_dir():
        raise InputError(f"MODEL = {run}: has no package yet; allowed: a run that was trained to its end")
    out = (run / "evaluation").absolute()
    storage = Path(str(config.run.storage))
    return Subject(str(config.run.name), paths.package.absolute(), config.data, config.evaluation, out, storage)


def _packaged(package: Path) -> EvaluationConfig:
    """The default evaluation, by the package's own solver."""
    try:
        solver = json.loads((package / "config.json").read_text())["solver"]
        return EvaluationConfig.model_validate_json(json.dumps({"solver": solver}))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"MODEL = {package}: not a whole package: {str(error).splitlines()[0]}") from None


def _registered(name: str, alias: str, tracking_uri: str | None) -> Subject:
    from trainer.registry import fetch

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_storage()}/mlflow.db"
    package, config_json = fetch(name, alias, uri, _storage() / "fetched")
    config = RunConfig.model_validate_json(config_json)
    return Subject(f"{name}@{alias}", package, config.data, config.evaluation, Path(), _storage())


def _storage() -> Path:
    return Path(os.environ.get("DUALVIEW_STORAGE") or Path.home() / "dualview").absolute()


def with_options(subject: Subject, options: argparse.Namespace) -> Subject:
    """The subject as the command line changes it.

    Raises:
        InputError: a folder or data must be named, or there is no such solver.
        ValidationError: of a setting.
    """
    given = {name: getattr(options, name) for name in ("samples", "seeds", "seed")}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.metrics is not None:
        changes["metrics"] = options.metrics.split(",")
    values = subject.evaluation.model_dump(mode="json") | changes
    if options.solver is not None or options.nfe is not None:
        values["solver"] = _solver(subject.evaluation.solver, options.solver, options.nfe).model_dump(mode="json")
    evaluation = EvaluationConfig.model_validate_json(json.dumps(values))
    data = subject.data if options.data is None else DataConfig(source=options.data)
    if data.source == "?":
        raise InputError("--data: the package does not say what it was trained on; allowed: a data source")
    if options.out is None and subject.out == Path():
        raise InputError("--out: a folder for what is found must be named where MODEL is no run's folder")
    return replace(subject, evaluation=evaluation, data=data, out=(options.out or subject.out).absolute())


def _solver(own: SolverConfig, kind: str | None, nfe: int | None) -> SolverConfig:
    """The named solver with its defaults, or the model's own, at so many evaluations or the next number below."""
    values = own.model_dump(mode="json") if kind in (None, own.kind) else {"kind": kind}
    adapter: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)
    if nfe is None:
        return adapter.validate_json(json.dumps(values))
    if values["kind"] == "rk45":
        raise InputError("--nfe: rk45 chooses its steps by itself; allowed: without --nfe")
    for steps in range(nfe, 0, -1):
        solver = adapter.validate_json(json.dumps(values | {"num_steps": steps}))
        if (evaluations(solver) or 0) <= nfe:
            return solver
    raise InputError(f"--nfe = {nfe}; allowed: at least 1")
