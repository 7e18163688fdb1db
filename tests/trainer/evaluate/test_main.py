"""`python -m trainer.evaluate`: which model is meant, how it is scored, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from diffusion.config import ClassifierFree, Ddim, DdpmProcess, MLPConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package, verify_package
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig, Metric
from trainer.config.load import default_storage
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.data.prepare import prepare
from trainer.errors import InputError
from trainer.evaluate.__main__ import main, parser
from trainer.evaluate.target import EvaluationTarget, find_target, with_options
from trainer.run.identity import register_name
from trainer.run.paths import RunPaths

SHAPE = (1, 8, 8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a package of an untrained network."""
    settings = RunSettings(name="mine", storage=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    evaluation = EvaluationConfig(samples=70, solver=Ddim(num_steps=7))
    config = RunConfig(network=MLPConfig(width=16, depth=1), evaluation=evaluation, run=settings)
    paths = RunPaths.of(config)
    register_name(config, paths, prepare(config.data, tmp_path).info.fingerprint)
    package = PackageConfig(
        process=DdpmProcess(num_train_timesteps=40),
        prediction="epsilon",
        network=config.network,
        image_shape=SHAPE,
        solver=Ddim(num_steps=9),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_package(paths.package, package, build_network(config.network, SHAPE).state_dict())
    return paths.root


def asked(model: Path, *arguments: str) -> EvaluationTarget:
    """The target that the command line names."""
    options = parser().parse_args([str(model), *arguments])
    return with_options(
        find_target(options.model, options.tracking_uri, lambda *_: pytest.fail("no registry")), options
    )


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that exits with 2."""
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("trained", [True, False, None])
def test_guidance_is_for_models_that_were_also_trained_without_labels(run, trained):
    file = run / "package" / "config.json"
    settings = json.loads(file.read_text())
    settings["network"]["classes"] = 10
    file.write_text(json.dumps({**settings, **({} if trained is None else {"null_label_trained": trained})}))
    target = asked(run)
    evaluation = target.evaluation.model_copy(update={"guidance": ClassifierFree(scale=2.0)})
    guided = replace(target, evaluation=evaluation)
    assert target.unsaid is None
    assert (guided.unsaid is not None) == (trained is None)
    if trained is False:
        with pytest.raises(ValueError, match=r"never trained without labels \(objective.label_dropout = 0\)"):
            guided._check_null_label()
    else:
        guided._check_null_label()


@pytest.mark.parametrize("within", ["", "package"])
def test_a_run_is_scored_as_it_was_evaluated(run, within):
    target = asked(run / within)
    assert (target.name, target.data, target.out) == ("mine", DataConfig(), run / "evaluation")
    assert target.package == run / "package"
    assert (target.evaluation.samples, target.evaluation.solver) == (70, Ddim(num_steps=7))
    assert target.network == "mlp"


def test_a_run_of_another_user_chooses_no_files_and_no_servers(run, monkeypatch, capsys):
    """Its package is taken, and nothing else that it says: an extractor would be run, and a server shown a password."""
    record = json.loads((run / "run.json").read_text())
    evil = {"inception_file": "/evil.pt", "inception_sha256": "0" * 64, "reference": "/evil.npz"}
    record["config"]["evaluation"] |= evil
    record["config"]["data"] |= {"source": "/victim"}
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("os.getuid", lambda: (run / "run.json").stat().st_uid + 1)
    if (run / "run.json").stat().st_uid == 0:
        os.chown(run / "run.json", 1, -1)
    target = asked(run, "--data", "digits", "--out", str(run / "mine"))
    assert "evil" not in repr(target)
    assert "victim" not in repr(target)
    assert (target.mlflow_run, target.storage, target.data.source) == (None, default_storage(), "digits")
    assert "is another user's" in capsys.readouterr().err
    with pytest.raises(InputError, match="--data"):
        asked(run / "package", "--out", str(run / "mine"))
    options = parser().parse_args([str(run), "--trust-run"])
    trusting = find_target(options.model, None, lambda *_: pytest.fail("no registry"), options.trust_run)
    assert trusting.data.source == "/victim"


def test_a_link_to_a_run_is_another_users(run, tmp_path, capsys):
    """Its results would be written where the link is, and recorded where they say."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").symlink_to(run / "run.json")
    (tmp_path / "theirs" / "package").symlink_to(run / "package")
    assert asked(tmp_path / "theirs", "--data", "digits", "--out", str(tmp_path / "out")).mlflow_run is None
    assert "another user's" in capsys.readouterr().err
    (tmp_path / "latest").symlink_to(run)
    assert asked(tmp_path / "latest").out == (tmp_path / "latest" / "evaluation")


def test_a_package_alone_is_scored_by_its_own_solver_on_data_that_are_named(run, tmp_path):
    package = shutil.copytree(run / "package", tmp_path / "elsewhere")
    target = asked(package, "--data", "digits", "--out", str(tmp_path / "out"))
    assert (target.data.source, target.out, target.evaluation.solver) == (
        "digits",
        tmp_path / "out",
        Ddim(num_steps=9),
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "steps"),
    [
        (["--nfe", "20"], "ddim", 20),
        (["--solver", "dpmpp_2m", "--nfe", "20"], "dpmpp_2m", 20),
        (["--solver", "heun", "--nfe", "20"], "heun", 10),
        (["--solver", "ancestral"], "ancestral", None),
    ],
)
def test_a_solver_is_named_with_its_evaluations(run, arguments, kind, steps):
    solver = asked(run, *arguments).evaluation.solver
    assert solver.kind == kind
    if steps is not None:
        assert getattr(solver, "num_steps") == steps  # noqa: B009 - not all solvers have one


def test_what_is_given_changes_the_evaluation_and_the_rest_stays(run):
    before = asked(run).evaluation
    after = asked(run, "--metrics", "nll,vlb", "--samples", "500", "--seeds", "3", "--seed", "9").evaluation
    assert (after.metrics, after.samples, after.seeds, after.seed) == (("nll", "vlb"), 500, 3, 9)
    unchanged = {"solver", "vlb_draws", "guidance", "nll_rtol", "classifier_seed"}
    assert after.model_dump(include=unchanged) == before.model_dump(include=unchanged)


def test_all_metrics_and_an_inception_file_of_ones_own(run):
    found = asked(run, "--metrics", "all", "--nfe-curve", "5,10", "--inception-file", "weights.pt").evaluation
    assert found.metrics == get_args(Metric)
    assert found.nfe_curve == (5, 10)
    assert found.extractors == ("classifier", "inception")
    assert found.inception_file == str(Path("weights.pt").absolute())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fid"], "metrics.0 = 'fid'"),
        (["--metrics", "vlb,vlb"], "each once"),
        (["--samples", "10"], "samples = 10"),
        (["--solver", "euler_2"], "euler_2"),
        (["--solver", "rk45", "--nfe", "5"], "rk45 chooses its steps by itself"),
        (["--nfe", "0"], "--nfe = 0; allowed: at least 1"),
        (["--solver", "ddim", "--nfe", "41"], "num_steps = 41; allowed: at most 40"),
        (["--data", "/nowhere"], "no such data"),
        (["--nfe-curve", "5,x"], "--nfe-curve = 5,x; allowed: whole numbers separated by commas"),
        (["--nfe-curve", "5,5"], "allowed: each once"),
        (["--metrics", "frechet", "--nfe-curve", "41"], "nfe_curve = 41: solver.num_steps = 41; allowed: at most 40"),
        (["--solver", "rk45", "--nfe-curve", "5"], "nfe_curve: rk45 chooses its steps by itself"),
        (["--extractors", "vgg"], "extractors.0 = 'vgg'"),
        (["--extractors", "inception"], "inception needs inception_file"),
        (["--metrics", "kid", "--inception-file", "/nowhere"], "evaluation.inception_file: /nowhere: No such file"),
        (["--metrics", "frechet", "--extractors", "efficientnet_lite0"], "samples = 70: the covariance of the 1280"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, message):
    assert message in refusal(capsys, str(run), *arguments)


def test_what_is_no_model_is_one_line(run, tmp_path, capsys):
    assert "no model" in refusal(capsys, str(tmp_path / "nowhere"))
    assert "no model" in refusal(capsys, str(tmp_path))
    package = shutil.copytree(run / "package", tmp_path / "elsewhere")
    assert "--data" in refusal(capsys, str(package), "--out", str(tmp_path / "out"))
    assert "--out" in refusal(capsys, str(package), "--data", "digits")
    (package / "config.json").write_text("{}")
    assert "not a complete package" in refusal(capsys, str(package), "--data", "digits", "--out", "x")
    shutil.rmtree(run / "package")
    assert "has no package yet" in refusal(capsys, str(run))
    (run / "run.json").write_text("[]")
    assert "not the folder of a run of this version" in refusal(capsys, str(run))


def test_an_altered_package_is_refused_before_anything_starts(run, capsys):
    weights = run / "package" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "model.safetensors: SHA-256 is" in refusal(capsys, str(run))


def test_data_of_another_shape_are_refused(run, capsys):
    config = json.loads((run / "package" / "config.json").read_text()) | {"image_shape": [1, 4, 4]}
    package = PackageConfig.model_validate_json(json.dumps(config))
    save_package(run / "package", package, build_network(MLPConfig(width=16, depth=1), (1, 4, 4)).state_dict())
    assert "images of (1, 8, 8); allowed: (1, 4, 4), the model's" in refusal(capsys, str(run))


def test_a_registry_that_does_not_answer_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = refusal(capsys, "digits@champion", "--tracking-uri", "http://127.0.0.1:9", "--out", "x")
    assert "MODEL = digits@champion" in line


def test_help_answers_without_torch():
    code = (
        "import sys; from trainer.evaluate.__main__ import parser; parser().format_help(); "
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_is_not_scored_on_other_data_without_a_word(run):
    """Its data are those of its run; others have to be named."""
    own = json.loads((run / "run.json").read_text())["dataset_fingerprint"]
    here = asked(run)
    info = DatasetInfo("digits", "e" * 64, SHAPE, 1437, 360, 10)
    difference = f"not the data that the model was trained on: their fingerprint was {own[:16]} and is eeeeeeeeeeeeeeee"
    with pytest.raises(InputError, match=f"{difference}; allowed: those, or other data named with --data"):
        here.check(info)
    there = asked(run, "--data", "digits")
    there.check(info)
    assert difference in str(there.data_difference(info))
    here.check(replace(info, fingerprint=own))


def test_a_package_says_what_it_was_trained_on(run, tmp_path):
    manifest = run / "package" / "manifest.json"
    before = verify_package(run / "package")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "dataset_fingerprint": "f" * 64}))
    assert verify_package(run / "package") == before
    shutil.copytree(run / "package", tmp_path / "elsewhere")
    target = asked(tmp_path / "elsewhere", "--data", "digits", "--out", str(tmp_path / "out"))
    info = DatasetInfo("digits", "e" * 64, SHAPE, 1437, 360, 10)
    assert "was ffffffffffffffff and is eeeeeeeeeeeeeeee" in str(target.data_difference(info))
