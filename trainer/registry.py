"""The model registry: a package becomes a LoggedModel, a registered version and an alias.

What is registered is the package folder itself, wrapped by a models-from-code pyfunc (`registry_pyfunc.py`) so that
`mlflow.pyfunc.load_model("models:/digits@champion").predict(...)` works with pickle deserialisation switched off.
"""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config import RunConfig
from trainer.data.info import DatasetInfo
from trainer.paths import RunPaths
from trainer.provenance import ROOT
from trainer.settings import InputError
from trainer.tracking import log_evaluation, log_grid, mlflow_environment

REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "pydantic", "numpy", "pandas")


def register(
    config: RunConfig, paths: RunPaths, dataset: DatasetInfo, summary: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Log the package as a model of the run, with its metrics, and register it where `run.register_as` asks.

    Returns:
        model_uri, registered_model, registered_version and alias (None where not registered).
    """
    mlflow_environment()
    import mlflow

    mlflow.set_tracking_uri(str(config.run.tracking_uri))
    client = mlflow.MlflowClient()
    model = _log_model(config, paths, summary, run_id)
    log_evaluation(client, run_id, model.model_id, dataset, summary)
    name = config.run.register_as
    if name is None:
        return {"model_uri": model.model_uri, "registered_model": None, "registered_version": None, "alias": None}
    number = _version(client, name, model, run_id, summary["package_sha256"])
    client.set_registered_model_alias(name, config.run.alias, number)
    return {
        "model_uri": f"models:/{name}@{config.run.alias}",
        "registered_model": name,
        "registered_version": int(number),
        "alias": config.run.alias,
    }


def log_results(config: RunConfig, paths: RunPaths, run_id: str, step: int) -> None:
    """Upload the results folder: summary, report, samples and pictures."""
    from mlflow import MlflowClient

    client = MlflowClient(config.run.tracking_uri)
    client.log_artifacts(run_id, str(paths.results), "results")
    log_grid(client, run_id, paths.results / "samples.png", step)


def _log_model(config: RunConfig, paths: RunPaths, summary: dict[str, Any], run_id: str) -> Any:  # noqa: ANN401 - ModelInfo
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # an input example would be run through the model here, which the evaluation has just done
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        return mlflow.pyfunc.log_model(
            name=str(config.run.name).replace(".", "-"),  # MLflow allows no dot here
            python_model=str(Path(__file__).with_name("registry_pyfunc.py")),
            artifacts={"package": str(paths.package)},
            code_paths=[str(ROOT / "diffusion")],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            signature=ModelSignature(inputs=Schema([ColSpec("long", "seed"), ColSpec("long", "image")])),
            metadata={"package_sha256": summary["package_sha256"], "method_sha256": summary["method_sha256"]},
            step=summary["step"],
        )


def _version(client: Any, name: str, model: Any, run_id: str, package_sha256: str) -> str:  # noqa: ANN401 - MLflow types
    """The version of this package under `name`, made unless it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get("package_sha256") == package_sha256:
            return found.version
    tags = {"package_sha256": package_sha256}
    return client.create_model_version(name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id).version


def fetch(name: str, alias: str, tracking_uri: str, into: Path) -> tuple[Path, str, str]:
    """Download a registered package and its run's configuration.

    Args:
        name: of the registered model.
        alias: of its version.
        tracking_uri: the registry.
        into: the folder that keeps packages, by their version.

    Returns:
        The package's folder, not verified, the configuration's JSON, and the id of the MLflow run.

    Raises:
        InputError: there is no such model, or the registry does not answer.
    """
    mlflow_environment()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri, tracking_uri)
        found = client.get_model_version_by_alias(name, alias)
        folder = into / name / str(found.version)
        folder.mkdir(parents=True, exist_ok=True)
        from mlflow.artifacts import download_artifacts

        location = f"{client.get_model_version_download_uri(name, found.version)}/artifacts/package"
        package = download_artifacts(location, dst_path=str(folder), tracking_uri=tracking_uri)
        config = client.download_artifacts(str(found.run_id), "config.json", str(folder))
    except (MlflowException, OSError) as error:
        raise InputError(f"MODEL = {name}@{alias}: {str(error).splitlines()[0]}; registry: {tracking_uri}") from None
    return Path(package).absolute(), Path(config).read_text(), str(found.run_id)
