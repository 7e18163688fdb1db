"""A registry that somebody else can write to chooses no code, no paths and no servers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from diffusion.config import Autoguidance, MLPConfig, VpProcess
from diffusion.locations import check_location
from diffusion.package import FILES, PackageConfig, build_denoiser_network, save_package
from trainer.config.load import validate
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.evaluate.__main__ import parser
from trainer.evaluate.target import EvaluationTarget, with_options, without_paths
from trainer.registry import evidence
from trainer.registry.models import _download_package, folder_of
from trainer.tracking.standalone import check_run, check_size, fetch_results


@pytest.fixture
def version(tmp_path: Path) -> Any:
    """A registered version, its artifacts in a folder, and what may be changed of them."""
    package = tmp_path / "store" / "artifacts" / "package"
    config = PackageConfig(
        process=VpProcess(), prediction="epsilon", network=MLPConfig(width=8, depth=1), image_shape=(1, 4, 4)
    )
    digest = save_package(package, config, build_denoiser_network(config).state_dict())
    (package / "evil.py").write_text("raise SystemExit")
    return SimpleNamespace(
        name="digits", version="3", tags={"package_sha256": digest}, location=str(tmp_path / "store")
    )


def download(version: Any, into: Path) -> Path:
    client: Any = SimpleNamespace(get_model_version_download_uri=lambda name, number: version.location)
    return _download_package(client, "digits", version, into, "http://mlflow.example:5000")


def test_only_the_packages_own_files_are_fetched(version: Any, tmp_path: Path):
    folder = download(version, tmp_path / "into")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder == tmp_path / "into" / "digits" / "3" / "package"


def test_another_package_than_the_registered_one_is_refused(version: Any, tmp_path: Path):
    version.tags["package_sha256"] = "0" * 64
    with pytest.raises(InputError, match=r"digits version 3: its package is [0-9a-f]{64}; the registry says 0{64}"):
        download(version, tmp_path / "into")


def test_an_altered_package_is_refused(version: Any, tmp_path: Path):
    file = tmp_path / "store" / "artifacts" / "package" / "config.json"
    file.write_text(file.read_text().replace("epsilon", "score"))
    with pytest.raises(InputError, match=r"digits version 3: .*config\.json: SHA-256 is"):
        download(version, tmp_path / "into")


@pytest.mark.parametrize("link", FILES)
def test_a_link_in_the_store_brings_no_file_of_this_machine(version: Any, tmp_path: Path, link: str):
    (tmp_path / "private").write_text("a secret of this machine")
    package = tmp_path / "store" / "artifacts" / "package"
    (package / link).unlink()
    (package / link).symlink_to(tmp_path / "private")
    with pytest.raises(MlflowException, match="outside the artifact directory"):  # MLflow's own check, before ours
        download(version, tmp_path / "into")
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "into").rglob("*.json"))


@pytest.mark.parametrize(
    "place",
    [
        "http://evil.example/x", "https://evil.example:5000/x", "http://mlflow.example/x", "http://mlflow.example:5001/x",
        "mlflow-artifacts://evil.example/x", "ftp://mlflow.example:5000/x", "http://169.254.169.254/latest/meta-data",
        "https://mlflow.example:5000/x", "sftp://evil/x", "http:///x", "runs:/abc/model", "models:/m-1",
        "http://evil.example\\@mlflow.example:5000/x", "http://evil@mlflow.example:5000/x", "hdfs://evil/x",
        "abfss://x@acct.evil.example/p", "http://mlflow.example:5000 /x",
        "file:///dev/zero#", "/home/victim?", "/x#y", "file://host/x", "file:///x\x00",
    ],
)  # fmt: skip
def test_another_server_is_not_asked(version: Any, tmp_path: Path, place: str):
    version.location = place
    client: Any = SimpleNamespace(get_model_version_download_uri=lambda name, number: place)
    for read in (evidence.fetch_config, evidence.fetch_scores):
        with pytest.raises(InputError, match="allowed: the registry's own server, or a store of files"):
            read(client, version, "http://mlflow.example:5000", tmp_path)
    with pytest.raises(InputError, match="allowed: the registry's own server, or a store of files"):
        download(version, tmp_path / "into")


@pytest.mark.parametrize(
    "place",
    [
        "http://mlflow.example:5000/api/x", "mlflow-artifacts:/1/models/m", "mlflow-artifacts://mlflow.example:5000/1",
        "/var/mlflow/1", "file:///var/mlflow/1", "s3://bucket/1", "gs://bucket/1",
        "abfss://x@acct.dfs.core.windows.net/p", "/var/my runs/1",
    ],
)  # fmt: skip
def test_the_registrys_own_places_are(place: str):
    check_location(place, "http://mlflow.example:5000")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc", "a\\b", "", "a\0b", "x:y"])
def test_a_name_is_no_way_out_of_the_folder(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="allowed: a name without slashes"):
        folder_of(tmp_path, name, "3")


@pytest.mark.parametrize("number", ["../3", "", "3/..", "three", "-1"])
def test_neither_is_a_number(number: str, tmp_path: Path):
    with pytest.raises(InputError, match="and a number"):
        folder_of(tmp_path, "digits", number)


def test_a_configuration_from_a_registry_names_no_files():
    values = {
        "data": {"source": "/home/victim/private"},
        "evaluation": {
            "extractors": ["inception", "classifier"],
            "inception_file": "/tmp/evil.pt",
            "inception_sha256": "0" * 64,
            "reference": "/tmp/evil.npz",
            "guidance": {"kind": "autoguidance", "guide": "/tmp/evil"},
            "samples": 500,
        },
    }
    config = RunConfig.model_validate_json(json.dumps(values))
    assert isinstance(config.evaluation.guidance, Autoguidance)
    data, evaluation, notes = without_paths(config)
    assert data.source == "?"
    kept = evaluation.model_dump_json()
    assert "evil" not in kept
    assert "victim" not in kept
    assert (evaluation.extractors, evaluation.samples, len(notes)) == (("classifier",), 500, 4)


@pytest.mark.parametrize(
    ("where", "value", "allowed"),
    [
        ("evaluation.nfe_curve", [10**12], 10**6), ("evaluation.nfe_curve", list(range(1, 10**4)), 100),
        ("evaluation.solver", {"kind": "heun", "num_steps": 10**11}, 10**6), ("evaluation.seeds", 10**9, 10**4),
        ("evaluation.samples", 10**12, 10**7), ("evaluation.vlb_draws", 10**12, 10**4),
        ("training.global_batch_size", 10**12, 2**24), ("parallel.workers", 10**9, 10**5),
        ("objective.weighting", {"kind": "adaptive", "knots": 10**12}, 10**6),
        ("objective.time_sampling", {"kind": "importance", "bins": 10**12}, 10**6),
    ],
)  # fmt: skip
def test_a_configuration_from_elsewhere_takes_bounded_memory(where: str, value: object, allowed: int):
    group, name = where.split(".")
    values: dict[str, Any] = {"evaluation": {"solver": {"kind": "heun"}}}
    values.setdefault(group, {})[name] = value
    with pytest.raises(InputError, match=rf"^{where}.*(allowed: .*|at most )\b{allowed}\b"):
        validate(values)


def test_so_do_all_its_samples_together():
    with pytest.raises(InputError, match=r"samples = 10000000: 100000000000 with all seeds .* at most 100000000"):
        validate({"evaluation": {"samples": 10**7, "seeds": 10**4}})


@pytest.mark.parametrize(
    "evaluation",
    [{"solver": {"kind": "heun", "num_steps": 10**6}}, {"nfe_curve": [10, 10**5], "solver": {"kind": "heun"}}],
)
def test_a_solver_from_elsewhere_comes_to_an_end(tmp_path: Path, evaluation: dict[str, Any]):
    """Where it is of a registry, or of another user's run; the command line may choose."""
    config = RunConfig.model_validate_json(json.dumps({"evaluation": evaluation}))
    data, settings, _ = without_paths(config)
    target = EvaluationTarget("x@y", tmp_path, data, settings, tmp_path, tmp_path, of_others=True)
    with pytest.raises(InputError, match=r"evaluations of an image; allowed: at most 10000; or --solver, --nfe"):
        with_options(target, parser().parse_args(["x@y"]))
    chosen = ["x@y", "--solver", "ddim", "--nfe-curve", "20000"]
    assert with_options(target, parser().parse_args(chosen)).evaluation.nfe_curve == (20000,)


def test_digits_from_elsewhere_are_not_enlarged_without_end():
    config = RunConfig.model_validate_json('{"data": {"source": "digits", "size": 4096}}')
    data, _, [note] = without_paths(config)
    assert (data.source, data.size) == ("?", None)
    assert "4096 pixels" in note


def test_a_configuration_without_any_is_as_it_was():
    config = RunConfig()
    assert without_paths(config) == (config.data, config.evaluation, [])


@pytest.mark.parametrize(
    "run_id", ["../x", "/x", "..", ".", "", "-x", "a.b", "0" * 129, "0" * 32 + "/x", "a\0b", "\u0661"]
)
def test_the_id_of_a_run_is_no_path(tmp_path: Path, run_id: str):
    (tmp_path / "into").mkdir()
    with pytest.raises(InputError, match="allowed: the id of a run"):
        fetch_results("http://127.0.0.1:9", run_id, tmp_path / "into")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "into"]


def test_results_that_are_far_too_large_are_not_fetched():
    check_size("x", None)
    check_size("x", 10**6)
    with pytest.raises(InputError, match="x: has 20000000000 bytes; allowed: at most"):
        check_size("x", 2 * 10**10)


def test_the_server_of_a_run_is_not_asked_either():
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri="http://evil.example/x"))
    client: Any = SimpleNamespace(get_run=lambda run_id: run)
    with pytest.raises(InputError, match=r"MLflow run abc: its files are at http://evil\.example"):
        check_run(client, "abc", "http://mlflow.example:5000")
