"""YAML and --set to a RunConfig; every bad input is one line naming field, value and what is allowed."""

import itertools
import json
import math

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from diffusion.config import ClassifierFree, Ddim, LinearSchedule
from trainer.config.load import apply_sets, load_config, read_yaml, resolve, validate
from trainer.config.run import check_tracking_uri
from trainer.config.run_config import RunConfig
from trainer.errors import InputError


def configured(tmp_path, text: str, *sets: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, list(sets))


def refusal(values: dict, *sets: str) -> str:
    """The one line that refuses these settings."""
    with pytest.raises(InputError) as caught:
        resolve(validate(apply_sets(values, list(sets))))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "field", "value", "allowed"),
    [
        ("process.num_train_timesteps=1", "process.num_train_timesteps", "1", "greater than or equal to 2"),
        ("process.num_train_timesteps=many", "process.num_train_timesteps", "'many'", "valid integer"),
        ("process.num_train_timesteps=10.5", "process.num_train_timesteps", "10.5", "valid integer"),
        ("parallel.zero_stage=4", "parallel.zero_stage", "4", "0, 1, 2 or 3"),
        ("parallel.workers=0", "parallel.workers", "0", "a number of at least 1, or [min, max]"),
        ("parallel.workers=two", "parallel.workers", "'two'", "a number of at least 1, or [min, max]"),
        ("parallel.workers=true", "parallel.workers", "True", "a number of at least 1, or [min, max]"),
        ("parallel.workers=[4, 1]", "parallel.workers", "[4, 1]", "a number of at least 1, or [min, max]"),
        ("parallel.workers=[1, 2, 3]", "parallel.workers", "[1, 2, 3]", "a number of at least 1, or [min, max]"),
        ("parallel.workers=[1, 129]", "parallel.workers", "129", "at most training.global_batch_size = 128"),
        ("parallel.device=tpu", "parallel.device", "'tpu'", "'auto', 'cpu' or 'cuda'"),
        ("optim.lr=0", "optim.lr", "0", "greater than 0"),
        ("optim.lr=fast", "optim.lr", "'fast'", "valid number"),
        ("optim.lr=.nan", "optim.lr", "nan", "finite"),
        ("optim.lr=true", "optim.lr", "True", "valid number"),
        ("optim.betas=[0.9]", "optim.betas.1", "", "required"),
        ("process.schedule.kind=table", "process.schedule.betas", "missing", "required"),
        ("evaluation.guidance.scale=2", "evaluation.guidance.kind", "missing", "classifier_free, autoguidance"),
        ("ema.sigma_rel=0.3", "ema.sigma_rel", "0.3", "less than or equal to 0.28"),
        ("training.precision=fp8", "training.precision", "'fp8'", "'fp32' or 'bf16'"),
        ("objective.prediction=u", "objective.prediction", "'u'", "'epsilon', 'score', 'x0', 'v' or 'edm'"),
        ("process.schedule.kind=logistic", "process.schedule.kind", "logistic", "'linear', 'quadratic', "),
        ("objective.weighting.kind=p3", "objective.weighting.kind", "p3", "'simple', 'vlb', 'likelihood'"),
        ("network.kind=vit", "network.kind", "vit", "'unet', 'dit', 'mlp'"),
        ("network.channels=[32, 0]", "network.channels.1", "0", "greater than or equal to 1"),
        ("network.channels=[12, 8]", "network", "12", "norm_groups = 8 does not divide"),
        ("run.name=a b", "run.name", "'a b'", "pattern"),
        ("run.storage=relative/path", "run.storage", "'relative/path'", "absolute path"),
        ("run.tracking_uri=localhost:5000", "run.tracking_uri", "'localhost:5000'", "http(s)://host[:port]"),
        ("data.heldout_fraction=1", "data.heldout_fraction", "1", "less than 1"),
        ("seed=-1", "seed", "-1", "greater than or equal to 0"),
        ("evaluation.samples=64", "evaluation.samples", "64", "greater than or equal to 65"),
        (
            "evaluation.solver.num_steps=1001",
            "evaluation.solver.num_steps",
            "1001",
            "at most 1000, the chain's process.num_train_timesteps",
        ),
        ("parallel.workers=129", "parallel.workers", "129", "at most training.global_batch_size = 128"),
        (
            "parallel.deepspeed.offload_optimizer=nvme",
            "parallel.deepspeed.offload_optimizer",
            "nvme",
            "none or cpu; the EMA and checkpoints cannot reach",
        ),
        (
            "parallel={zero_stage: 3, deepspeed: {offload_parameters: nvme}}",
            "parallel.deepspeed.offload_parameters",
            "nvme",
            "none or cpu; NVMe needs an operator",
        ),
        (
            "parallel.deepspeed.offload_parameters=cpu",
            "parallel",
            "deepspeed.offload_parameters = cpu",
            "with zero_stage 3, not 2",
        ),
        (
            "parallel.deepspeed.allgather_bucket_size=9",
            "parallel.deepspeed.allgather_bucket_size",
            "9",
            "multiple of 2",
        ),
        ("parallel.channels_last=true", "parallel.channels_last", "True", "with network.kind unet"),
        ("parallel.deepspeed.reduce_bucket_size=0", "parallel.deepspeed.reduce_bucket_size", "0", "or equal to 1"),
        (
            "parallel={zero_stage: 3, deepspeed: {allgather_bucket_size: 8}}",
            "parallel",
            "deepspeed.allgather_bucket_size = 8",
            "with zero_stage 1 or 2, not 3",
        ),
        (
            "parallel={zero_stage: 0, deepspeed: {overlap_comm: true}}",
            "parallel",
            "overlap_comm = True",
            "1 or 2 or 3, not 0",
        ),
        ("parallel={zero_stage: 3, compile: true}", "parallel", "compile = True", "zero_stage 0 to 2"),
        (
            "parallel.deepspeed.activation_checkpointing=true",
            "parallel.deepspeed.activation_checkpointing",
            "True",
            "with network.kind unet or dit",
        ),
        ("training=5", "training", "5", "an object"),
        ("network=unet", "network", "unet", "an object"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(setting, field, value, allowed):
    values = {
        "network": {"kind": "mlp" if "activation" in setting or "channels_last" in setting else "unet"},
        "process": {"schedule": {"kind": "cosine"}},
        "evaluation": {"solver": {"kind": "ddim"}},
    }
    line = refusal(values, setting)
    assert line.startswith(field)
    assert value in line
    assert allowed in line


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("traning.steps=5", "did you mean training?"),
        ("training.step=5", "did you mean training.steps?"),
        ("optim.lrs=5", "did you mean optim.lr?"),
        ("process.schedule.beta_strt=5", "did you mean process.schedule.beta_start?"),
        ("network.chanels=[8]", "did you mean network.channels?"),
        ("evaluation.solver.num_step=3", "did you mean evaluation.solver.num_steps?"),
        ("parallel.zero_stag=3", "did you mean parallel.zero_stage?"),
        ("run.tracking_url=http://x", "did you mean run.tracking_uri?"),
        ("sed=1", "did you mean seed?"),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(setting, suggestion):
    values = {
        "process": {"schedule": {"kind": "linear"}},
        "network": {"kind": "unet"},
        "evaluation": {"solver": {"kind": "dpmpp_2m"}},
    }
    line = refusal(values, setting)
    path = suggestion.removeprefix("did you mean ").rpartition(".")[0]
    assert line.startswith(path)
    assert line.endswith(f"unknown key; {suggestion}")


def test_an_unknown_key_like_no_other_gets_the_list():
    line = refusal({"network": {"kind": "mlp"}}, "network.zzzz=1")
    assert line == "network.zzzz: unknown key; allowed here: kind, classes, width, depth"


def test_keys_of_another_kind_are_unknown_to_this_one():
    assert refusal({"network": {"kind": "mlp", "channels": [8, 8]}}).startswith(
        "network.channels: unknown key; allowed here: kind, classes, width, depth"
    )


def test_several_problems_show_the_first_and_count_the_rest():
    line = refusal({"optim": {"lr": -1, "eps": -1}, "seed": -1})
    assert line.startswith("optim.lr = -1")
    assert line.endswith("(and 2 more)")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1e+3", "+1e3", "-2.5e2", ".5e1", "3e5", "1.e4", "0.001"])
def test_scientific_notation_in_yaml_is_a_number(tmp_path, text):
    (tmp_path / "x.yaml").write_text(f"value: {text}\nlist: [{text}]\n")
    assert read_yaml(tmp_path / "x.yaml") == {"value": float(text), "list": [float(text)]}
    assert apply_sets({}, [f"value={text}"]) == {"value": float(text)}


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "v1e3", "1e-", "'1e3'"])
def test_what_only_looks_like_a_number_stays_text(text):
    assert isinstance(apply_sets({}, [f"value={text}"])["value"], str)


@given(st.floats(1e-12, 1e6))
@settings(deadline=None)
def test_every_float_survives_set_and_yaml(value):
    assert apply_sets({}, [f"x={value!r}"])["x"] == value
    assert validate(apply_sets({}, [f"optim.lr={value!r}"])).optim.lr == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- a\n- b\n", "a mapping of settings is wanted, not a list"),
        ("just text", "a mapping of settings is wanted, not a str"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (b"\xff\xfe\x00a", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("nowhere.yaml", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=f"--config .*: {message}"):
        read_yaml(tmp_path / name)


def test_an_empty_file_means_all_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert validate(read_yaml(tmp_path / "empty.yaml")) == RunConfig()


@pytest.mark.parametrize("item", ["seed", "=3", ".a=3", "a.=3", "a..b=3", ""])
def test_a_set_that_is_no_assignment_is_refused(item):
    with pytest.raises(InputError, match=r"allowed: dotted\.path=value"):
        apply_sets({}, [item])


def test_a_set_below_a_value_is_refused():
    with pytest.raises(InputError, match=r"--set seed\.deeper\.still: seed is a value, not a group of settings"):
        apply_sets({"seed": 3}, ["seed.deeper.still=1"])


def test_a_group_that_is_null_so_far_can_be_set():
    values = validate({"network": {"classes": 10}}).model_dump(mode="json")
    assert values["evaluation"]["guidance"] is None
    config = validate(apply_sets(values, ["evaluation.guidance.kind=classifier_free", "evaluation.guidance.scale=3"]))
    assert config.evaluation.guidance == ClassifierFree(scale=3)


def test_a_value_may_hold_equals_signs_and_lists():
    assert apply_sets({}, ["run.tracking_uri=postgresql://u@h/db?a=b", "network.channels=[8, 16]"]) == {
        "run": {"tracking_uri": "postgresql://u@h/db?a=b"},
        "network": {"channels": [8, 16]},
    }


KIND_SETS = [
    "network.kind=mlp",
    "network.width=48",
    "process.schedule.kind=linear",
    "process.schedule.beta_end=0.015",
    "evaluation.solver.kind=ddim",
    "evaluation.solver.eta=0.5",
    "evaluation.solver.num_steps=7",
    "seed=4",
    "optim.lr=2e-4",
]
START = {
    "network": {"kind": "unet", "channels": [8, 8]},
    "process": {"num_train_timesteps": 500, "schedule": {"kind": "cosine", "s": 0.01}},
    "evaluation": {"solver": {"kind": "dpmpp_2m", "clip_x0": False}},
}


@given(st.permutations(KIND_SETS))
@settings(deadline=None, max_examples=100)
def test_kinds_go_first_whatever_the_order(sets):
    config = validate(apply_sets(START, list(sets)))
    assert config == validate(apply_sets(START, KIND_SETS))
    assert config.network.model_dump() == {"kind": "mlp", "classes": 0, "width": 48, "depth": 3}
    assert config.process.schedule == LinearSchedule(beta_start=1e-4, beta_end=0.015)
    assert config.process.num_train_timesteps == 500
    assert config.evaluation.solver == Ddim(eta=0.5, num_steps=7, clip_x0=True)


def test_a_new_kind_replaces_its_group_by_that_kinds_defaults():
    assert apply_sets(START, ["process.schedule.kind=linear"])["process"] == {
        "num_train_timesteps": 500,
        "schedule": {"kind": "linear"},
    }


def test_the_same_kind_leaves_its_group_alone():
    assert apply_sets(START, ["process.schedule.kind=cosine", "network.kind=unet"]) == START


def test_naming_the_default_kind_leaves_its_group_alone():
    values = {"process": {"num_train_timesteps": 500}}
    assert validate(apply_sets(values, ["process.kind=ddpm"])).process.num_train_timesteps == 500


@pytest.mark.parametrize(
    "setting", ["network.layers_per_block=2", "process.schedule.s=0.01", "evaluation.solver.num_steps=7"]
)
def test_a_setting_of_the_default_kind_needs_no_kind(setting):
    path, _, value = setting.partition("=")
    *groups, leaf = path.split(".")
    node = validate(apply_sets({}, [setting]))
    for group in groups:
        node = getattr(node, group)
    assert getattr(node, leaf) == float(value)


@pytest.mark.parametrize(
    "sets",
    [
        pytest.param(
            ["process.schedule={kind: linear}", "process.schedule.beta_end=0.01"],
        ),
        ["process.schedule.kind=linear", "process.schedule.beta_end=0.01"],
    ],
)
def test_a_group_and_its_parts_may_be_set_in_any_order(sets):
    first, *others = [apply_sets(START, list(order)) for order in itertools.permutations(sets)]
    assert all(other == first for other in others)


def test_sets_do_not_touch_the_values_they_are_given():
    before = json.dumps(START)
    apply_sets(START, ["network.kind=mlp", "process.schedule.s=1"])
    assert json.dumps(START) == before


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/path",
        "sqlite:////abs/mlflow.db",
        "postgresql://user@host:5432/mlflow",
        "postgresql+psycopg2://host/db",
        "mysql+pymysql://host/db",
    ],
)
def test_tracking_uris_a_server_could_stand_behind_are_taken(uri):
    assert validate({"run": {"tracking_uri": uri}}).run.tracking_uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "localhost:5000",
        "/var/mlruns",
        "file:///var/mlruns",
        "http://",
        "http:///",
        "ftp://host",
        "sqlite:",
        "sqlite://",
        "http:/host",
        "databricks",
        "http:///path",
        "http://:5000",
        "http://host:port",
        "http://host:99999",
        "http://ho st:5000",
        "http://user@",
    ],
)
def test_tracking_uris_that_nothing_could_answer_are_refused(uri):
    with pytest.raises(ValueError, match="not a tracking URI; allowed: "):
        check_tracking_uri(uri)


@pytest.mark.parametrize("where", ["environment", "setting"])
def test_a_password_is_refused_and_not_repeated(bare_environment, monkeypatch, where):
    uri = "postgresql://user:secret@host/db"
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"user:\*\*\*@host.*password") as caught:
        resolve(validate(apply_sets({}, [] if where == "environment" else [f"run.tracking_uri={uri}"])))
    assert "secret" not in str(caught.value)


@pytest.fixture
def bare_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DUALVIEW_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_places_default_to_the_home_folder(bare_environment):
    config = resolve(RunConfig())
    assert config.run.storage == f"{bare_environment}/dualview"
    assert config.run.tracking_uri == f"sqlite:///{bare_environment}/dualview/mlflow.db"
    assert config.run.name == f"digits-{config.method_sha256[:8]}"


def test_the_environment_names_places_and_the_file_wins(bare_environment, monkeypatch, tmp_path):
    monkeypatch.setenv("DUALVIEW_STORAGE", "/from/environment")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    run = resolve(RunConfig()).run
    assert (run.storage, run.tracking_uri) == ("/from/environment", "http://from-environment:5000")
    run = configured(tmp_path, "run: {storage: /from/file, tracking_uri: 'http://from-file', name: mine}\n").run
    assert (run.storage, run.tracking_uri, run.name) == ("/from/file", "http://from-file", "mine")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DUALVIEW_STORAGE", "relative", "DUALVIEW_STORAGE = 'relative': must be an absolute path"),
        ("MLFLOW_TRACKING_URI", "nonsense", "MLFLOW_TRACKING_URI = 'nonsense': not a tracking URI; allowed: http"),
    ],
)
def test_a_bad_environment_is_bad_input(bare_environment, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        resolve(RunConfig())
    assert str(caught.value).startswith(message)


def test_resolving_twice_changes_nothing(bare_environment):
    once = resolve(RunConfig())
    assert resolve(once) == once
    assert once.method_sha256 == RunConfig().method_sha256


@pytest.mark.parametrize(
    "length",
    [
        10,
        91,
        pytest.param(100),
    ],
)
def test_a_resolved_configuration_is_valid_where_it_is_read_again(bare_environment, length):
    """Workers validate the canonical JSON once more."""
    config = resolve(validate({"run": {"experiment": "e" * length}}))
    assert RunConfig.model_validate_json(config.canonical_json()) == config


def test_the_shipped_configuration_is_valid_and_is_what_its_comments_say(pytestconfig):
    values = read_yaml(pytestconfig.rootpath / "configs" / "digits.yaml")
    config = validate(values)
    assert (config.training.steps, config.optim.lr, config.process.schedule.kind) == (1500, 1e-3, "cosine")
    assert yaml.safe_load(yaml.safe_dump(values)) == values


def test_an_infinite_number_is_refused_wherever_it_hides():
    assert math.isinf(apply_sets({}, ["optim.lr=1e400"])["optim"]["lr"])
    assert "optim.lr" in refusal({}, "optim.lr=1e400")


@pytest.mark.parametrize(
    "text", ["data: {source: !!binary gIGC}\n", "run: &a\n  name: *a\n"], ids=["binary", "recursive"]
)
def test_yaml_that_no_setting_can_be_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        configured(tmp_path, text)
