"""The model registry: a package becomes a LoggedModel, a registered version and an alias.

The package folder itself is registered, wrapped by a models-from-code pyfunc (`pyfunc.py`), so that
`mlflow.pyfunc.load_model("models:/digits@champion").predict(...)` works with pickle deserialisation switched off.
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from diffusion.locations import files_of
from trainer.config.run import CHALLENGER, GateConfig
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.comparison import ComparedModel, read
from trainer.registry import evidence
from trainer.registry.gate import Decision, decide, faults_of, likelihoods_of
from trainer.registry.promotion import (
    Version,
    decide_alias,
    roll_back,
    set_alias,
    tag_decision,
    version_of_alias,
    versions,
)
from trainer.run.paths import RunPaths
from trainer.run.provenance import ROOT
from trainer.run.summary import GateDecision, Registration, RunSummary
from trainer.tracking.client import is_outage, mlflow_client, mlflow_environment
from trainer.tracking.runs import log_evaluation, log_grid

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

NAME = re.compile(r"[^/\\:\0]{1,250}(?<!^\.)(?<!^\.\.)")
REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "pydantic", "numpy", "pandas")


def register(
    config: RunConfig, paths: RunPaths, dataset: DatasetInfo, summary: RunSummary, run_id: str
) -> Registration:
    """Log the package as a model of the run, with its metrics, and register it where `run.register_as` asks."""
    mlflow_environment()
    import mlflow

    mlflow.set_tracking_uri(str(config.run.tracking_uri))
    client = mlflow_client(str(config.run.tracking_uri))
    model = _log_model(config, paths, summary, run_id)
    log_evaluation(client, run_id, model.model_id, dataset, summary.step, summary.evaluated, summary.metrics())
    name, alias = config.run.register_as, config.run.alias
    if name is None:
        return Registration(run_id, model.model_uri)
    number = _version(client, name, model, run_id, summary.package_sha256)
    candidate = read(paths.results, "this version")
    gate = Gate(client, name, str(config.run.tracking_uri), config.run.gate)
    decision = decide_alias(
        client, name, number, alias, lambda champion: gate.decide(candidate, paths.package, champion)
    )
    given = alias if decision.promoted else CHALLENGER
    return Registration(
        run_id=run_id,
        model_uri=f"models:/{name}@{given}",
        registered_model=name,
        registered_version=int(number),
        alias=given,
        gate=GateDecision(alias, decision.reason),
    )


@dataclass(frozen=True)
class Gate:
    """The gate of a registered model; fetches the champion's evaluation from the registry for the comparison."""

    client: "MlflowClient"
    name: str
    tracking_uri: str
    config: GateConfig

    def decide(self, candidate: ComparedModel, package: Path, champion: str | None) -> Decision:
        """Whether a version may replace the champion.

        Args:
            candidate: the version's evaluation.
            package: folder of the version's package.
            champion: number of the version that has the alias; None where none has.
        """
        faults = faults_of(package)
        likelihoods = likelihoods_of(package)
        if champion is None:
            return decide(self.config, candidate, faults, None, likelihoods)
        try:
            present = self.evaluated(champion)
        except InputError as error:
            return Decision(False, f"not comparable with version {champion}: {error}")
        return decide(self.config, candidate, faults, present, likelihoods)

    def evaluated(self, number: str) -> ComparedModel:
        """The evaluation that a version was registered with.

        Raises:
            InputError: the registry has none.
        """
        return version_scores(self.client, self.client.get_model_version(self.name, number), self.tracking_uri)


def version_scores(client: "MlflowClient", version: "ModelVersion", tracking_uri: str) -> ComparedModel:
    """The evaluation that a version was registered with.

    Raises:
        InputError: the registry has none.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read(evidence.fetch_scores(client, version, tracking_uri, Path(folder)), f"version {version.version}")


def scores_of(name: str, which: str, tracking_uri: str) -> ComparedModel:
    """The evaluation of a registered version.

    Args:
        name: name of the registered model.
        which: the version's number, or an alias.
        tracking_uri: tracking URI of the registry.

    Raises:
        InputError: there is no such version, it has no evaluation, or the registry does not answer.
    """
    with _asked(f"RUN = {name}@{which}", tracking_uri) as client:
        by_number = which.isdecimal()
        version = client.get_model_version(name, which) if by_number else client.get_model_version_by_alias(name, which)
        return replace(version_scores(client, version, tracking_uri), name=f"{name}@{which}")


@contextmanager
def _asked(what: str, tracking_uri: str) -> "Iterator[MlflowClient]":
    """A client of the registry; its errors become an InputError that names `what` was asked for."""
    try:
        yield mlflow_client(tracking_uri)
    except InputError:
        raise
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if isinstance(error, (MlflowException, OSError)) or is_outage(error):
            raise InputError(f"{what}: {str(error).splitlines()[0]}; registry: {tracking_uri}") from None
        raise


def open_versions(name: str, tracking_uri: str) -> list[Version]:
    """The versions of a registered model, the newest first; what is gone of one is said in its `problem`.

    Raises:
        InputError: there is no such model, or the registry does not answer.
    """
    with _asked(f"NAME = {name}", tracking_uri) as client:
        return versions(client, name, lambda version: version_scores(client, version, tracking_uri).evaluated.metrics())


def rollback(name: str, alias: str, tracking_uri: str, reason: str) -> tuple[str, str]:
    """Give an alias back to the version that had it before; versions that were deleted are passed over.

    Returns:
        The numbers of the version that has the alias again, and of the version that lost it.

    Raises:
        InputError: there is no earlier version, or the registry does not answer.
    """
    with _asked(f"NAME = {name}", tracking_uri) as client:
        return roll_back(client, name, alias, reason)


def promote(name: str, number: str, alias: str, tracking_uri: str, into: Path, force: bool, reason: str) -> Decision:
    """Give a version the alias if it passes the gate of its run's configuration; with `force`, in any case.

    Raises:
        InputError: there is no such version, or the registry does not answer.
    """
    with _asked(f"NAME = {name}, VERSION = {number}", tracking_uri) as client:
        version = client.get_model_version(name, number)
        champion = version_of_alias(client, name, alias)
        if champion == number:
            return Decision(True, f"it is {alias} already")
        folder = folder_of(into, name, number)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            config = RunConfig.model_validate_json(evidence.fetch_config(client, version, tracking_uri, folder))
            gate = Gate(client, name, tracking_uri, config.run.gate)
            candidate = gate.evaluated(number)
            decision = gate.decide(candidate, _download_package(client, name, version, into, tracking_uri), champion)
        except (InputError, ValidationError) as error:
            decision = Decision(False, f"the gate has nothing to judge by: {str(error).splitlines()[0]}")
        promoted = decision.promoted or force
        by_hand = f"by hand{': ' + reason if reason else ''}; the gate: " if force or reason else ""
        decision = Decision(promoted, by_hand + decision.reason)
        tag_decision(client, name, number, alias if promoted else CHALLENGER, decision.reason)
        if promoted:
            set_alias(client, name, number, alias)
        return decision


def log_results(config: RunConfig, paths: RunPaths, run_id: str, step: int) -> None:
    """Upload the results folder: summary, report, samples and pictures."""
    client = mlflow_client(str(config.run.tracking_uri))
    client.log_artifacts(run_id, str(paths.results), "results")
    log_grid(client, run_id, paths.results / "samples.png", step)


def log_summary(config: RunConfig, paths: RunPaths, run_id: str) -> None:
    """Upload the summary again, now that it says what was registered."""
    mlflow_client(str(config.run.tracking_uri)).log_artifact(run_id, str(paths.summary), "results")


def _log_model(config: RunConfig, paths: RunPaths, summary: RunSummary, run_id: str) -> "ModelInfo":
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    with (
        mlflow.start_run(run_id=run_id),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as scratch,
    ):
        # an input example would be run through the model here, which the evaluation has just done
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        return mlflow.pyfunc.log_model(
            name=str(config.run.name).replace(".", "-"),  # MLflow allows no dot here
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={
                "package": paths.package.absolute().as_uri(),
                "evidence": evidence.collect(config, paths, Path(scratch)).as_uri(),
            },
            code_paths=[str(ROOT / "diffusion")],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            signature=ModelSignature(inputs=Schema([ColSpec("long", "seed"), ColSpec("long", "image")])),
            metadata={"package_sha256": summary.package_sha256, "method_sha256": summary.method_sha256},
            step=summary.step,
        )


def _version(client: "MlflowClient", name: str, model: "ModelInfo", run_id: str, package_sha256: str) -> str:
    """The number of the registered version of this package under `name`, created unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for registered in client.search_model_versions(f"name = '{name}'"):
        if registered.tags.get("package_sha256") == package_sha256:
            return registered.version
    tags = {"package_sha256": package_sha256}
    return client.create_model_version(name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id).version


def package_digest_of(name: str, alias: str, tracking_uri: str) -> str:
    """The digest of the package that a registered model's version has.

    Raises:
        InputError: there is no such model, it says no digest, or the registry does not answer.
    """
    with _asked(f"MODEL = {name}@{alias}", tracking_uri) as client:
        version = client.get_model_version_by_alias(name, alias)
    digest: str | None = version.tags.get("package_sha256")
    if digest is None:
        raise InputError(f"MODEL = {name}@{alias}: version {version.version} does not say which package it has")
    return digest


def fetch(name: str, alias: str, tracking_uri: str, into: Path) -> tuple[Path, str, str]:
    """Download a registered package and its run's configuration.

    Args:
        name: name of the registered model.
        alias: alias of the version to download.
        tracking_uri: tracking URI of the registry.
        into: folder for downloaded packages, one folder per model and version.

    Returns:
        The package's folder, verified, the configuration as JSON, and the id of the MLflow run.

    Raises:
        InputError: there is no such model, its package is not the registered one, or the registry does not answer.
    """
    with _asked(f"MODEL = {name}@{alias}", tracking_uri) as client:
        version = client.get_model_version_by_alias(name, alias)
        folder = folder_of(into, name, str(version.version))
        folder.mkdir(parents=True, exist_ok=True)
        config = evidence.fetch_config(client, version, tracking_uri, folder)
        return _download_package(client, name, version, into, tracking_uri), config, str(version.run_id)


def sign_version(
    name: str,
    number: str,
    tracking_uri: str,
    into: Path,
    private_key: Path,
    expected: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """Download a version's package, verify it, and record its signature with the version; returns its digest.

    Args:
        name: of the model.
        number: of the version.
        tracking_uri: of the registry, which may serve another package than the one that was looked at.
        into: folder for downloaded packages.
        private_key: file of the key.
        expected: digest of the package that is meant, in hex; None signs whichever the registry serves.
        tell: called with the digest before anything is signed.

    Raises:
        InputError: there is no such version, its package is not the registered or the expected one, or the file holds
            no private key.
    """
    from diffusion.package import verify_package
    from diffusion.signature import TAG, sign

    with _asked(f"NAME = {name}, VERSION = {number}", tracking_uri) as client:
        version = client.get_model_version(name, number)
        digest = verify_package(_download_package(client, name, version, into, tracking_uri))
        tell(digest)
        if expected is not None and expected.lower() != digest:
            raise InputError(f"--package-sha256 {expected}: the registry has package {digest}; nothing is signed")
        try:
            signature = sign(digest, private_key)
        except (OSError, ValueError) as error:
            raise InputError(f"--key {private_key}: {error}") from None
        client.set_model_version_tag(name, number, TAG, signature)
        return digest


def _download_package(
    client: "MlflowClient", name: str, version: "ModelVersion", into: Path, tracking_uri: str
) -> Path:
    """A version's package, downloaded to a folder of `into`, and verified.

    Raises:
        InputError: it is not a complete package, it is not the one that was registered, or its files are on another web
            server than the registry's.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts

    from diffusion.package import FILES, PackageError, verify_package

    number, folder = str(version.version), folder_of(into, name, str(version.version)) / "package"
    folder.mkdir(parents=True, exist_ok=True)
    location = f"{evidence.location_of(client, name, number, tracking_uri)}/artifacts/package"
    try:
        there = files_of(list_artifacts(location, tracking_uri=tracking_uri), FILES)
    except ValueError as error:
        raise InputError(f"{name} version {number}: package/{error}") from None
    for file in there:
        fetched = download_artifacts(f"{location}/{file}", dst_path=str(folder), tracking_uri=tracking_uri)
        if Path(fetched) != folder / file:  # some stores keep a part of the way
            Path(fetched).replace(folder / file)
    try:
        digest, registered = verify_package(folder), version.tags.get("package_sha256")
    except (PackageError, ValueError) as error:
        raise InputError(f"{name} version {number}: {error}") from None
    if registered not in (None, digest):
        raise InputError(f"{name} version {number}: its package is {digest}; the registry says {registered}")
    return folder.absolute()


def folder_of(into: Path, name: str, number: str) -> Path:
    """The folder that a version is downloaded to.

    Raises:
        InputError: the name or the number, which the registry chooses, is none that a folder can have.
    """
    if not number.isdecimal() or not NAME.fullmatch(name):
        raise InputError(f"{name!r} version {number!r}: allowed: a name without slashes, and a number")
    return into / name / number
