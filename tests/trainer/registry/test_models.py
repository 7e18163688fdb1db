"""The registry's commands on a real one: a better version is promoted, taken back, and fetched as it was registered."""

import json
from pathlib import Path

import pytest
import torch

from diffusion.config import DdpmProcess, MLPConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package, verify_package
from tests.trainer.registry.test_promotion import store  # noqa: F401 - a fixture
from trainer.config.run import GateConfig, RunSettings
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.registry.models import fetch, open_versions, promote, rollback

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)
SHAPE = (1, 4, 4)
CONFIG = RunConfig(run=RunSettings(gate=GateConfig(likelihood_gap=10)))


def package(folder: Path, seed: int) -> str:
    network = MLPConfig(width=8, depth=1)
    config = PackageConfig(
        process=DdpmProcess(num_train_timesteps=20), prediction="epsilon", network=network, image_shape=SHAPE
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return save_package(folder, config, build_network(network, SHAPE).state_dict())


@pytest.fixture
def registered(store, tmp_path, request):  # noqa: F811 - the fixture
    """(name, uri): two versions of which the second is better by 0.4 bits/dim, with their packages and evaluations."""
    uri, client = store
    name = request.node.name.replace("[", "-").replace("]", "")
    client.create_registered_model(name)
    experiment = client.create_experiment(name, artifact_location=f"file://{tmp_path}/runs")
    for number, vlb in enumerate((4.5, 4.1), start=1):
        run = client.create_run(experiment).info.run_id
        client.log_text(run, CONFIG.canonical_json(), "config.json")
        scores = {f"{likelihood}_bpd": vlb for likelihood in ("vlb", "continuous_vlb", "nll")}
        values = {"dataset_fingerprint": "d" * 64, **scores, "vlb_bpd_se": 0.02}
        client.log_text(run, json.dumps(values), "results/evaluation.json")
        model = tmp_path / f"model-{number}"
        package(model / "artifacts" / "package", number)
        client.create_model_version(name, f"file://{model}", run_id=run)
    return name, uri


def test_a_better_version_is_promoted_taken_back_and_fetched(registered, tmp_path):
    name, uri = registered
    first = promote(name, "1", "champion", uri, tmp_path / "fetched", False, "")
    assert (first.promoted, first.reason) == (True, "vlb_bpd 4.5 +- 0.02; there was no champion")
    second = promote(name, "2", "champion", uri, tmp_path / "fetched", False, "a test")
    assert second.promoted
    assert second.reason.startswith("by hand: a test; the gate: vlb_bpd 4.1 +- 0.02 beside version 1's 4.5 +- 0.02")
    assert promote(name, "2", "champion", uri, tmp_path / "fetched", False, "").reason == "it is champion already"
    folder, config, _ = fetch(name, "champion", uri, tmp_path / "again")
    assert verify_package(folder) == verify_package(tmp_path / "model-2" / "artifacts" / "package")
    assert RunConfig.model_validate_json(config) == CONFIG
    assert rollback(name, "champion", uri, "complaints") == ("1", "2")
    versions = {version.number: version for version in open_versions(name, uri)}
    assert versions["1"].aliases == ["champion"]
    assert versions["2"].reason == "version 1 is champion again: complaints"


def test_a_worse_version_is_not_promoted_unless_by_force(registered, tmp_path):
    name, uri = registered
    promote(name, "2", "champion", uri, tmp_path, False, "")
    refused = promote(name, "1", "champion", uri, tmp_path, False, "")
    assert not refused.promoted
    assert "worse" in refused.reason
    assert promote(name, "1", "champion", uri, tmp_path, True, "").promoted


def test_what_is_not_in_the_registry_is_named(registered, tmp_path):
    name, uri = registered
    with pytest.raises(InputError, match="NAME = nobody"):
        open_versions("nobody", uri)
    with pytest.raises(InputError, match=f"NAME = {name}, VERSION = 9"):
        promote(name, "9", "champion", uri, tmp_path, False, "")
    with pytest.raises(InputError, match=f"MODEL = {name}@nobody"):
        fetch(name, "nobody", uri, tmp_path)
