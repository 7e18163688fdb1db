"""A tiny random-weight package, and an MLflow registry on SQLite that holds it."""

from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from diffusion.config import DdpmProcess, Dpmpp2M, MLPConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package, verify_package
from sampler.models import Model, load, resolve

SHAPE = (1, 8, 8)


def write_package(
    folder: Path,
    seed: int = 0,
    classes: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    null_label_trained: bool | None = None,
    class_names: tuple[str, ...] = (),
) -> str:
    """Write a package of a small random network; returns its SHA-256."""
    network = MLPConfig(width=16, depth=1, classes=classes)
    config = PackageConfig(
        process=DdpmProcess(num_train_timesteps=100),
        prediction="epsilon",
        network=network,
        image_shape=shape,
        solver=Dpmpp2M(num_steps=5),
        null_label_trained=null_label_trained,
        class_names=class_names,
    )
    torch.manual_seed(seed)
    return save_package(folder, config, build_network(network, shape).state_dict())


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "tiny"
    write_package(folder)
    return folder


@pytest.fixture(scope="session")
def model(package: Path) -> Model:
    return load(resolve(str(package)))


@pytest.fixture(scope="session")
def classed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a model with three classes."""
    folder = tmp_path_factory.mktemp("packages") / "classed"
    write_package(folder, classes=3)
    return folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, package: Path) -> str:
    """The URI of a registry in which tiny@champion is version 1, laid out as the trainer registers models.

    tiny@stranger is a version that holds no package, tiny@impostor one whose package is not the one registered.
    """
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry") / "of any name #1?a%41"
    folder.mkdir()
    uri = f"sqlite:///{quote(str(folder))}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    run = client.create_run(client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri()))
    client.log_artifacts(run.info.run_id, str(package), "model/artifacts/package")
    client.create_registered_model("tiny")
    digests = {"champion": verify_package(package), "stranger": "", "impostor": "0" * 64}
    for alias, digest in digests.items():
        source = f"{run.info.artifact_uri}/{'other' if alias == 'stranger' else 'model'}"
        version = client.create_model_version("tiny", source, run.info.run_id, tags={"package_sha256": digest})
        client.set_registered_model_alias("tiny", alias, version.version)
    return uri
