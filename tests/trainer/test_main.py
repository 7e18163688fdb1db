"""The command line: exit codes, what it prints, and what it does not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracles.summaries import finish
from trainer.__main__ import main
from trainer.config.load import resolve
from trainer.config.run_config import RunConfig
from trainer.run.identity import register_name
from trainer.run.paths import RunPaths


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    """A small run file whose results would go to tmp_path."""
    monkeypatch.setenv("DUALVIEW_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path = tmp_path / "run.yaml"
    path.write_text(
        "parallel: {workers: 3, zero_stage: 1, cpus_per_worker: 0.5}\ntraining: {global_batch_size: 64, steps: 7}\n"
    )
    return path


def bad(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that exits with 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_dry_run_json_says_all_that_would_happen(run_file, capsys, tmp_path):
    assert main(["--config", str(run_file), "--set", "network.kind=mlp", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    config = RunConfig.model_validate_json(json.dumps(plan["config"]))
    assert resolve(config) == config
    assert (config.network.kind, config.parallel.workers, config.training.steps) == ("mlp", 3, 7)
    assert (plan["config_sha256"], plan["method_sha256"]) == (config.config_sha256, config.method_sha256)
    assert plan["bundles"] == [{"CPU": 0.5}] * 3
    assert plan["deepspeed"]["zero_optimization"] == {"stage": 1, "compute_grad_norm": False}
    assert plan["deepspeed"]["train_micro_batch_size_per_gpu"] == 22  # 64 rows on 3 workers, padded
    assert plan["deepspeed"]["gradient_accumulation_steps"] == 1
    assert plan["run"] == {
        "name": config.run.name,
        "directory": f"{tmp_path}/storage/digits/{config.run.name}",
        "state": "new",
    }
    assert not (tmp_path / "storage").exists()


def test_gpu_bundles_are_planned_where_gpus_are_asked_for(run_file, capsys):
    assert main(["--config", str(run_file), "--set", "parallel.device=cuda", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundles"] == [{"CPU": 0.5, "GPU": 1.0}] * 3


def test_a_range_of_workers_asks_for_the_least_and_is_the_same_method(run_file, capsys):
    plans = []
    for workers in ("3", "[2, 4]"):
        assert main(["--config", str(run_file), "--set", f"parallel.workers={workers}", "--dry-run", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[1]["bundles"] == [{"CPU": 0.5}] * 2
    assert plans[1]["deepspeed"]["train_micro_batch_size_per_gpu"] == 16  # 64 rows on 4
    assert plans[1]["run"] == plans[0]["run"]


def test_dry_run_for_people_names_the_run_and_its_state(run_file, capsys):
    assert main(["--config", str(run_file), "--set", "run.name=mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# mine would start\n")
    assert "zero_optimization" in out


@pytest.mark.parametrize(
    ("summary_step", "state", "words"), [(None, "resumable", "would resume"), (7, "done", "is done; nothing would run")]
)
def test_dry_run_knows_how_far_a_run_got(run_file, capsys, summary_step, state, words):
    main(["--config", str(run_file), "--dry-run", "--json"])
    config = RunConfig.model_validate_json(json.dumps(json.loads(capsys.readouterr().out)["config"]))
    paths = RunPaths.of(config)
    register_name(config, paths, "d" * 64)
    if summary_step:
        finish(paths, step=summary_step)
    assert main(["--config", str(run_file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["state"] == state
    assert main(["--config", str(run_file), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"# {config.run.name} {words}\n")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("parallel.zero_stage=4", "error: parallel.zero_stage = 4: allowed: 0, 1, 2 or 3\n"),
        (
            "process.num_train_timesteps=1",
            "error: process.num_train_timesteps = 1: allowed: greater than or equal to 2\n",
        ),
        ("training.stesp=3", "error: training.stesp: unknown key; did you mean training.steps?\n"),
        ("optim.lr=quick", "error: optim.lr = 'quick': allowed: a valid number\n"),
        (
            "run.tracking_uri=nowhere",
            "error: run.tracking_uri = 'nowhere': not a tracking URI; allowed: http(s)://host[:port]",
        ),
        (
            "data.source=/no/such.npy",
            "error: data.source = '/no/such.npy': no such data; allowed: digits; the path of a .npy or .parquet file",
        ),
        (
            "evaluation.guidance={kind: autoguidance, guide: tests}",
            "error: evaluation.guidance.guide = 'tests': not the absolute path of a folder; allowed: that of a package",
        ),
        (
            "evaluation.guidance={kind: autoguidance, guide: /no/such}",
            "error: evaluation.guidance.guide = '/no/such': not the absolute path of a folder",
        ),
        ("nonsense", "error: --set 'nonsense': allowed: dotted.path=value\n"),
    ],
)
@pytest.mark.parametrize("dry_run", [["--dry-run"], []], ids=["dry", "real"])
def test_bad_input_is_one_line_and_exit_code_2_before_anything_starts(
    run_file, capsys, tmp_path, setting, line, dry_run
):
    assert bad(capsys, "--config", str(run_file), "--set", setting, *dry_run).startswith(line)
    assert not (tmp_path / "storage").exists()


def test_a_missing_config_file_is_bad_input(capsys):
    assert bad(capsys, "--config", "/no/such.yaml") == "error: --config /no/such.yaml: No such file or directory\n"


def test_a_name_taken_by_another_method_is_bad_input(run_file, capsys):
    main(["--config", str(run_file), "--set", "run.name=mine", "--dry-run", "--json"])
    config = RunConfig.model_validate_json(json.dumps(json.loads(capsys.readouterr().out)["config"]))
    register_name(config, RunPaths.of(config), "d" * 64)
    line = bad(capsys, "--config", str(run_file), "--set", "run.name=mine", "--set", "seed=1")
    assert line.startswith("error: run.name = 'mine': taken by another method")
    assert "allowed: another name" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["--config"], ["--config", "x.yaml", "--json"], ["--config", "x.yaml", "--nope"], ["--set", "a=1"]],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m trainer" in capsys.readouterr().err


def test_help_shows_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in (
        "--config FILE",
        "--set PATH=VALUE",
        "--dry-run",
        "ray job submit --working-dir .",
        "0 done; 2 bad input",
    ):
        assert text in out


HEAVY = ["torch", "ray", "mlflow", "deepspeed", "diffusers", "sklearn", "pandas", "scipy"]


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], [*HEAVY, "numpy"]),
        (["--config", "{file}", "--dry-run"], HEAVY),
        (["--config", "{file}", "--set", "seed=-1"], [*HEAVY, "numpy"]),
    ],
    ids=["help", "dry-run", "bad-input"],
)
def test_commands_that_only_talk_import_nothing_heavy(run_file, arguments, absent):
    program = (
        "import runpy, sys\n"
        "sys.argv = ['trainer', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('trainer', run_name='__main__', alter_sys=True)\n"
        f"finally:\n    print('IMPORTED', sorted(set({absent!r}) & set(sys.modules)))\n"
    )
    filled = [argument.format(file=run_file) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", program, *filled], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "seed=-1" in filled else 0), done.stderr
    assert done.stdout.rstrip().endswith("IMPORTED []")


def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_written(run_file, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert "RAY_ADDRESS = 127.0.0.1:9: no Ray cluster answers" in bad(capsys, "--config", str(run_file))
    assert not list((tmp_path / "storage").rglob("run.json"))
    assert not (tmp_path / "storage" / "datasets").exists()


@pytest.mark.parametrize("name", ["mnist", "emoji"])
def test_run_files_whose_data_do_not_come_along_say_so(name, capsys, tmp_path, monkeypatch):
    file = Path(__file__).resolve().parents[2] / "configs" / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALVIEW_STORAGE", str(tmp_path / "storage"))
    line = bad(capsys, "--config", str(file), "--dry-run")
    assert line.startswith(f"error: data.source = '../shared/data/{name}")
    assert ": no such data; allowed: digits; " in line
    assert main(["--config", str(file), "--dry-run", "--set", "data.source=digits"]) == 0
