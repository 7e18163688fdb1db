"""A registry that somebody else can write to chooses no code, no paths and no servers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from safetensors.numpy import save

from diffusion.config import Autoguidance, MLPConfig, VpProcess
from diffusion.locations import check_location
from diffusion.package import FILES, PackageConfig, build_denoiser_network, save_package
from sampler.models import ModelError, Source, load
from trainer.config.data import DataConfig
from trainer.config.load import validate
from trainer.config.run import GateConfig
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.__main__ import parser
from trainer.evaluate.comparison import ComparedModel
from trainer.evaluate.results import PER_IMAGE
from trainer.evaluate.target import EvaluationTarget, with_options, without_paths
from trainer.registry import evidence
from trainer.registry.models import Gate, _download_package, folder_of, version_scores
from trainer.registry.promotion import DECISION, _described, decide_alias, history
from trainer.run.summary import evaluated_from_json
from trainer.tracking.standalone import RESULTS, check_run, fetch_results


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


GOOD = {"dataset_fingerprint": "d" * 64, "vlb_bpd": 4.5, "vlb_bpd_se": 0.1}
SPOILT = {
    "an error of text": {**GOOD, "vlb_bpd_se": "abc"},
    "a spread that is a list": {**GOOD, "vlb_bpd_sd": [1.0]},
    "samples of text": {**GOOD, "samples": "many"},
    "notes of numbers": {**GOOD, "notes": [1]},
    "a protocol that is none": {**GOOD, "protocol": {"vlb_bpd": [1]}},
    "a protocol of text": {**GOOD, "protocol": {"vlb_bpd": {"df": "x", "extractors": {"a": 1}}}},
    "ends that are none": {**GOOD, "protocol": {"vlb_bpd": {"log_snr_ends": ["a", "b"]}}},
    "an extractor of numbers": {**GOOD, "samples": 1, "extractors": {"pixels": {"sha256": 1}}},
    "a point of text": {**GOOD, "samples": 1, "frechet_at_nfe": {"fid": [{"nfe": "x", "value": 1.0}]}},
    "no mapping": [1],
    "too deep": None,
}


def evidence_of(version: Any, content: object, name: str = "evaluation.json") -> Any:
    """Register what somebody says that a version was evaluated as; returns a client that has it."""
    folder = Path(version.location) / "artifacts" / "evidence"
    folder.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text("[" * 10**5 if content is None else json.dumps(content))
    return SimpleNamespace(
        get_model_version_download_uri=lambda name, number: version.location, get_model_version=lambda *_: version
    )


@pytest.mark.parametrize("what", [*SPOILT, "no text"])
def test_what_is_spoilt_of_a_version_is_its_problem_and_nobody_elses(version: Any, tmp_path: Path, what: str):
    client = evidence_of(version, b"\xff{" if what == "no text" else SPOILT[what])
    described = _described(version, {}, lambda each: version_scores(client, each, str(tmp_path)).evaluated.metrics())
    assert described.metrics == {}
    assert "not the output of an evaluation" in described.problem
    assert "\n" not in described.problem
    gate = Gate(client, "digits", str(tmp_path), GateConfig())
    candidate = ComparedModel("this", "d" * 64, evaluated_from_json(GOOD))
    decision = gate.decide(candidate, Path(version.location) / "artifacts" / "package", "3")
    assert not decision.promoted
    assert "not comparable with version 3" in decision.reason


FINGERPRINT = {"dataset_fingerprint": "d" * 64}


@pytest.mark.parametrize(
    ("metadata", "values"),
    [
        (None, np.zeros(3)),
        (FINGERPRINT, np.zeros(3)),
        (FINGERPRINT | {"dimensions": "x"}, np.zeros(3)),
        (FINGERPRINT | {"dimensions": "0"}, np.zeros(3)),
        (FINGERPRINT | {"dimensions": "-1"}, np.zeros(3)),
        (FINGERPRINT | {"dimensions": "64"}, np.zeros((3, 1))),  # whose difference from [N] would be [N, N]
        (FINGERPRINT | {"dimensions": "64"}, np.zeros(3, np.int8)),
    ],
    ids=range(7),
)
def test_the_images_of_a_version_are_what_they_should_be(
    version: Any, tmp_path: Path, metadata: dict[str, str] | None, values: NDArray[Any]
):
    evidence_of(version, save({"vlb": values}, metadata), PER_IMAGE)
    found = version_scores(evidence_of(version, GOOD), version, str(tmp_path))
    assert found.evaluated.metrics() == {"vlb_bpd": 4.5, "vlb_bpd_se": 0.1}
    assert found.per_image == {}


def test_an_evaluation_that_is_a_folder_is_not_fetched(version: Any, tmp_path: Path):
    folder = Path(version.location) / "artifacts" / "evidence" / "evaluation.json"
    folder.mkdir(parents=True)
    (folder / "much").touch()
    client: Any = SimpleNamespace(get_model_version_download_uri=lambda name, number: version.location)
    assert evidence._names(client, version, str(tmp_path), RESULTS) == set()


def test_a_configuration_that_is_no_text_is_a_problem(version: Any, tmp_path: Path):
    client = evidence_of(version, b"\xff", evidence.CONFIG)
    with pytest.raises(InputError, match=r"version 3: .*can't decode"):
        evidence.fetch_config(client, version, str(tmp_path), tmp_path)


@pytest.mark.parametrize("tag", ["x", "{}", "[1]", '["../3"]', "[" * 10**5, "null", '["2", null]'])
def test_a_history_that_is_none_is_forgotten(tag: str):
    model = SimpleNamespace(aliases={"champion": "3"}, tags={"dualview.history.champion": tag})
    client: Any = SimpleNamespace(get_registered_model=lambda name: model)
    assert history(client, "digits", "champion") == ["3"]


def test_a_decision_without_a_reason_is_one():
    version = SimpleNamespace(tags={DECISION: "champion"})
    client: Any = SimpleNamespace(get_model_version=lambda *_: version)
    decision = decide_alias(client, "digits", "3", "champion", lambda _: pytest.fail("decided already"))
    assert (decision.promoted, decision.reason) == (True, "")


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


@pytest.mark.parametrize("extractors", [("pixels",), ("efficientnet_lite0",)])
def test_samples_from_elsewhere_take_bounded_memory(tmp_path: Path, extractors: tuple[str, ...]):
    """They are held whole, with their features; the command line may ask for more."""
    config = PackageConfig(
        process=VpProcess(), prediction="epsilon", network=MLPConfig(width=8, depth=1), image_shape=(3, 32, 32)
    )
    save_package(tmp_path / "package", config, build_denoiser_network(config).state_dict())
    info = DatasetInfo("x", "f" * 64, (3, 32, 32), train=10**6, heldout=10**6, classes=0)
    evaluation = validate({"evaluation": {"samples": 10**7, "extractors": list(extractors)}}).evaluation
    data = DataConfig(source="digits")
    target = EvaluationTarget("x", tmp_path / "package", data, evaluation, tmp_path, tmp_path, of_others=True)
    few, many = (
        with_options(target, parser().parse_args(["x", "--data", "x", *more]))
        for more in ([], ["--samples", "10000000"])
    )
    with pytest.raises(InputError, match=r"samples = 10000000: take more than 16 GiB .* at most \d+, or --samples"):
        few.check(info)
    many.check(info)


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


def listed(path: str, size: int | None = 10, is_dir: bool = False) -> Any:
    return SimpleNamespace(path=path, file_size=size, is_dir=is_dir)


def test_results_that_are_far_too_large_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = [listed("results/evaluation.json", 2 * 10**10), listed("results/samples.npy", 2 * 10**10)]
    client: Any = SimpleNamespace(
        get_run=lambda run_id: SimpleNamespace(info=SimpleNamespace(artifact_uri="/x", run_name="x")),
        list_artifacts=lambda *_: there,
        download_artifacts=lambda *_: pytest.fail("fetched"),
    )
    monkeypatch.setattr("trainer.tracking.standalone.mlflow_client", lambda uri: client)
    with pytest.raises(InputError, match=r"evaluation\.json has 20000000000 bytes; allowed: at most 268435456"):
        fetch_results("http://127.0.0.1:9", "abc", tmp_path)
    there[0] = listed("results/evaluation.json", None, is_dir=True)
    _, folder = fetch_results("http://127.0.0.1:9", "abc", tmp_path)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (listed("config.json", None, is_dir=True), r"its run abc has no config\.json"),
        (listed("config.json", 2**40), r"config\.json has 1099511627776 bytes; allowed: at most 268435456"),
    ],
)
def test_neither_is_the_configuration_of_a_run(version: Any, tmp_path: Path, there: Any, said: str):
    version.run_id = "abc"
    client: Any = SimpleNamespace(
        get_model_version_download_uri=lambda name, number: version.location,
        get_run=lambda run_id: SimpleNamespace(info=SimpleNamespace(artifact_uri="/x")),
        list_artifacts=lambda *_: [there],
        download_artifacts=lambda *_: pytest.fail("fetched"),
    )
    with pytest.raises(InputError, match=said):
        evidence.fetch_config(client, version, str(tmp_path), tmp_path)


@pytest.mark.parametrize("kind", ["a folder", "a hole"])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_package_of_folders_or_of_endless_texts_is_not_fetched(version: Any, tmp_path: Path, kind: str, name: str):
    package = tmp_path / "store" / "artifacts" / "package"
    (package / name).unlink()
    if kind == "a folder":
        (package / name).mkdir()
        (package / name / "much").touch()
    else:
        with (package / name).open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        download(version, tmp_path / "into")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(Source("a@b", "a", "3", str(package), "http://mlflow.example:5000"))
    assert not [path for path in (tmp_path / "into").rglob("*") if path.name in ("much", "evil.py")]
    assert not (tmp_path / "into" / "digits" / "3" / "package" / name).exists()


def test_the_server_of_a_run_is_not_asked_either():
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri="http://evil.example/x"))
    client: Any = SimpleNamespace(get_run=lambda run_id: run)
    with pytest.raises(InputError, match=r"MLflow run abc: its files are at http://evil\.example"):
        check_run(client, "abc", "http://mlflow.example:5000")
