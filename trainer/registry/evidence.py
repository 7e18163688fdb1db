"""What a version was registered with: its evaluation and its run's configuration, kept beside its package.

A run that is lengthened makes another version and overwrites its own results in MLflow, and it may be deleted there:
evidence belongs to the version. A version from before 2026-11-28 has none of its own; the results of its run stand in
while they are those of its package.
"""
# MLflow's client has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.bounded import read_bounded
from diffusion.locations import check_location, files_of
from trainer.config.run_config import RunConfig
from trainer.errors import InputError, one_line
from trainer.evaluate.comparison import FILES
from trainer.evaluate.results import PER_IMAGE
from trainer.files import MAX_JSON_BYTES, read_json
from trainer.run.paths import RunPaths
from trainer.tracking.client import is_outage
from trainer.tracking.standalone import RESULTS, check_run, fetch_results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER, CONFIG = "evidence", "config.json"
CONFIGS = {CONFIG: MAX_JSON_BYTES}


def collect(config: RunConfig, paths: RunPaths, into: Path) -> Path:
    """Copy a run's evaluation and configuration to a folder named FOLDER; returns it."""
    folder = into / FOLDER
    folder.mkdir()
    for name in (paths.summary.name, PER_IMAGE):
        if (paths.results / name).is_file():
            shutil.copy(paths.results / name, folder)
    (folder / CONFIG).write_text(config.canonical_json() + "\n")
    return folder


def fetch_scores(client: "MlflowClient", version: "ModelVersion", tracking_uri: str, into: Path) -> Path:
    """Download a version's evaluation, the bits/dim of each image included; returns the folder it is in.

    Raises:
        InputError: the registry has none of this version; says why.
    """
    with _asked(version):
        there = _names(client, version, tracking_uri, RESULTS)
        if there & set(FILES):
            for name in there:
                _download(client, version, f"{FOLDER}/{name}", tracking_uri, into)
            return into / FOLDER
        return _of_run(version, tracking_uri, into)


def fetch_config(client: "MlflowClient", version: "ModelVersion", tracking_uri: str, into: Path) -> str:
    """The configuration of the run that made a version, as JSON.

    Raises:
        InputError: the registry has none of this version; says why.
    """
    with _asked(version):
        if _names(client, version, tracking_uri, CONFIGS):
            file = _download(client, version, f"{FOLDER}/{CONFIG}", tracking_uri, into)
            return read_bounded(file, MAX_JSON_BYTES).decode()
    try:
        check_run(client, str(version.run_id), tracking_uri)
        if not files_of(client.list_artifacts(str(version.run_id)), CONFIGS):
            raise InputError(f"version {version.version}: its run {version.run_id} has no {CONFIG}")
        file = Path(client.download_artifacts(str(version.run_id), CONFIG, str(into)))
        return read_bounded(file, MAX_JSON_BYTES).decode()
    except InputError:
        raise
    except Exception as error:
        if is_outage(error):
            raise
        raise InputError(f"version {version.version}: its run {version.run_id} is gone: {one_line(error)}") from None


def _of_run(version: "ModelVersion", tracking_uri: str, into: Path) -> Path:
    """The results of the version's run, if they are those of its package."""
    try:
        _, folder = fetch_results(tracking_uri, str(version.run_id), into)
    except InputError as error:
        raise InputError(f"version {version.version} has no scores of its own, and {error}") from None
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"version {version.version} has no scores of its own, and its run {version.run_id} has none")
    try:
        measured = str(read_json(file).get("package_sha256", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"version {version.version}: {file.name} of its run {version.run_id}: {error}") from None
    own = version.tags.get("package_sha256")
    if measured and own and measured != own:
        raise InputError(
            f"version {version.version} has no scores of its own, and those of its run {version.run_id} are of a later "
            "version"
        )
    return folder


@contextmanager
def _asked(version: "ModelVersion") -> Generator[None]:
    """Turn whatever is wrong with what a version has into an InputError that names it; an outage stays one."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_outage(error):
            raise
        raise InputError(f"version {version.version}: {one_line(error)}") from None


def _names(client: "MlflowClient", version: "ModelVersion", tracking_uri: str, wanted: Mapping[str, int]) -> set[str]:
    """Which of these files a version's evidence has; none where its artifacts are gone."""
    from mlflow.artifacts import list_artifacts

    try:
        files = list_artifacts(_uri(client, version, FOLDER, tracking_uri), tracking_uri=tracking_uri)
    except Exception as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return set()
        raise
    return files_of(files or [], wanted)


def _download(client: "MlflowClient", version: "ModelVersion", path: str, tracking_uri: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    target = into / Path(path).parent
    target.mkdir(parents=True, exist_ok=True)
    return Path(
        download_artifacts(_uri(client, version, path, tracking_uri), dst_path=str(target), tracking_uri=tracking_uri)
    )


def _uri(client: "MlflowClient", version: "ModelVersion", path: str, tracking_uri: str) -> str:
    return f"{location_of(client, str(version.name), str(version.version), tracking_uri)}/artifacts/{path}"


def location_of(client: "MlflowClient", name: str, number: str, tracking_uri: str) -> str:
    """Where a version's files are.

    Raises:
        InputError: on another web server than the registry's.
    """
    location = str(client.get_model_version_download_uri(name, number))
    try:
        check_location(location, tracking_uri)
    except ValueError as error:
        raise InputError(f"{name} version {number}: {error}") from None
    return location
