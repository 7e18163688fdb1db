"""The registry's commands on a real one: a better version is promoted, taken back, and fetched as it was registered."""

import json
import shutil
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
from trainer.registry.models import fetch, open_versions, promote, rollback, scores_of

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


def lengthened(client, name, tmp_path):
    """One run that was lengthened: two versions with evidence of their own; the results in the run are the second's."""
    experiment = client.create_experiment(name, artifact_location=f"file://{tmp_path}/runs")
    run = client.create_run(experiment).info.run_id
    client.create_registered_model(name)
    for number, vlb in enumerate((4.5, 4.1), start=1):
        model = tmp_path / f"model-{number}"
        sha256 = package(model / "artifacts" / "package", number)
        scores = {f"{likelihood}_bpd": vlb for likelihood in ("vlb", "continuous_vlb", "nll")}
        values = {"dataset_fingerprint": "d" * 64, "package_sha256": sha256, **scores, "vlb_bpd_se": 0.02}
        own = model / "artifacts" / "evidence"
        own.mkdir()
        (own / "summary.json").write_text(json.dumps(values))
        (own / "config.json").write_text(CONFIG.canonical_json())
        client.log_text(run, json.dumps(values), "results/summary.json")
        client.log_text(run, CONFIG.canonical_json(), "config.json")
        client.create_model_version(name, f"file://{model}", run_id=run, tags={"package_sha256": sha256})
    return run


def test_each_version_of_a_lengthened_run_has_its_own_scores(store, tmp_path):  # noqa: F811 - the fixture
    uri, client = store
    lengthened(client, "lengthened", tmp_path)
    first, second = reversed(open_versions("lengthened", uri))
    assert (first.metrics["vlb_bpd"], second.metrics["vlb_bpd"]) == (4.5, 4.1)
    assert promote("lengthened", "1", "champion", uri, tmp_path, False, "").promoted
    decision = promote("lengthened", "2", "champion", uri, tmp_path, False, "")
    assert decision.promoted
    assert "vlb_bpd 4.1 +- 0.02 beside version 1's 4.5 +- 0.02: better" in decision.reason
    assert scores_of("lengthened", "1", uri).evaluated.numbers()["vlb_bpd"] == 4.5
    assert scores_of("lengthened", "champion", uri).evaluated.numbers()["vlb_bpd"] == 4.1


def test_a_version_whose_run_was_deleted_is_promoted_fetched_and_compared(store, tmp_path):  # noqa: F811 - the fixture
    uri, client = store
    client.delete_run(lengthened(client, "orphan", tmp_path))
    assert promote("orphan", "2", "champion", uri, tmp_path, False, "").promoted
    _, config, _ = fetch("orphan", "champion", uri, tmp_path / "fetched")
    assert RunConfig.model_validate_json(config) == CONFIG
    assert [version.problem for version in open_versions("orphan", uri)] == ["", ""]


def test_versions_of_before_without_scores_of_their_own_say_so(store, tmp_path):  # noqa: F811 - the fixture
    """The run's results are those of its last version; the one before is not compared with them."""
    uri, client = store
    lengthened(client, "before", tmp_path)
    for number in (1, 2):
        shutil.rmtree(tmp_path / f"model-{number}" / "artifacts" / "evidence")
    second, first = open_versions("before", uri)
    assert second.metrics["vlb_bpd"] == 4.1
    assert "are of a later version" in first.problem
    refused = promote("before", "1", "champion", uri, tmp_path, False, "")
    assert not refused.promoted
    assert "the gate has nothing to judge by: version 1 has no scores of its own" in refused.reason
    assert promote("before", "1", "champion", uri, tmp_path, True, "").promoted
