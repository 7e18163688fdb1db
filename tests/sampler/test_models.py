"""References to models: what resolves, what loads, and one clear line for what does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.package import verify_package
from sampler.generate import generate
from sampler.models import Model, ModelError, RegistryUnavailableError, load, resolve
from tests.conftest import half_migrated

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


def test_a_registered_alias_loads_the_same_network_as_its_package(registry: str, package: Path, model: Model) -> None:
    source = resolve("tiny@champion", registry)
    registered = load(source)
    assert (source.reference, source.name, source.version) == ("tiny@champion", "tiny", "1")
    assert registered.package_sha256 == verify_package(package)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 50, 100])
    with torch.no_grad():
        assert torch.equal(registered.denoiser.epsilon(x, t), model.denoiser.epsilon(x, t))


def test_a_folder_is_a_local_version(package: Path) -> None:
    source = resolve(str(package))
    assert (source.name, source.version, source.location) == ("tiny", "local", str(package))


@pytest.mark.parametrize(
    ("alias", "message"),
    [
        ("stranger", "its version holds no artifacts/package: not a DualView model"),
        ("impostor", "the registry says 000"),
    ],
)
def test_a_version_that_is_not_the_registered_package_is_refused(registry: str, alias: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"^model: tiny@{alias}: .*{message}"):
        load(resolve(f"tiny@{alias}", registry))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_flipped_byte_is_refused(package: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(package, tmp_path / "flipped")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=r"^model: flipped: .*\.(safetensors|json)"):
        load(resolve(str(folder)))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tiny@challenger", "model: tiny@challenger: no such alias; allowed: tiny@champion, tiny@impostor"),
        ("huge@champion", "model: huge@champion: not in the registry at sqlite:///"),
        ("nowhere", "model: nowhere: no such folder; allowed: NAME@alias, or the path of a package folder"),
        ("@champion", "model: @champion: no such folder"),
    ],
)
def test_an_unknown_reference_says_what_is_allowed(registry: str, reference: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(reference, registry)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_registry_that_does_not_answer_is_told_from_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match="no answer from the registry"):
        resolve("tiny@champion", "http://127.0.0.1:9")


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such database"):
        resolve("tiny@champion", f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"text", b"SQLite format 3\0" + bytes(99)])
def test_a_file_that_is_not_mlflows_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(ModelError, match=r"^tracking-uri: sqlite:///.*; allowed: MLflow's database$"):
        resolve("tiny@champion", f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_a_database_whose_first_migration_was_killed_is_refused(tmp_path: Path) -> None:
    half_migrated(tmp_path / "mlflow.db")
    with pytest.raises(ModelError, match="not a database that this version of MLflow can use: ") as caught:
        resolve("tiny@champion", f"sqlite:///{tmp_path}/mlflow.db")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "device",
    [
        "cpu:0",  # another device than `cpu` by name: the way to it and back is that to a GPU
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
            ],
        ),
    ],
)
def test_a_network_on_another_device_makes_the_same_images(package: Path, device: str) -> None:
    here, there = load(resolve(str(package))), load(resolve(str(package)), device)
    assert here.denoiser.network is not there.denoiser.network
    solver = here.config.solver
    mine, theirs = (generate(model, solver, 7, 3, lambda _: None) for model in (here, there))
    assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= (0 if device == "cpu:0" else 1)
