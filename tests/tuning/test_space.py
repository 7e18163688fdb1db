"""The grid, its refusals, and the random numbers that its trials share."""

import subprocess
import sys

import pytest
import torch

from diffusion.process.sde import make_process
from tests.conftest import ROOT
from tests.tuning.conftest import SCHEDULES, SPACE, made, written
from trainer.errors import InputError
from trainer.worker.batch_plan import BatchPlan
from tuning.__main__ import main
from tuning.space import read_sweep, short_names


def refusal(folder, *sets, run_file=None, **changes) -> str:
    """The one line that refuses this sweep; nothing has been written."""
    with pytest.raises(InputError) as caught:
        made(folder, *sets, run_file=run_file, **changes).states()
    assert "\n" not in str(caught.value)
    assert not (folder / "storage").exists()
    return str(caught.value)


def grid(*values):
    return {"kind": "grid", "values": list(values)}


def test_the_grid_is_expanded_in_the_files_order_the_last_path_fastest(tmp_path):
    sweep = made(tmp_path)
    assert [trial.label for trial in sweep.trials] == [
        "schedule=linear weighting=simple",
        "schedule=linear weighting=vlb",
        "schedule=cosine weighting=simple",
        "schedule=cosine weighting=vlb",
    ]
    for trial in sweep.trials:
        assert trial.config.process.schedule.kind == trial.settings["process.schedule.kind"]
        assert trial.config.objective.weighting.kind == trial.settings["objective.weighting.kind"]
        assert trial.name == f"mine-{trial.config.method_sha256[:8]}"
        assert trial.config.run.register_as is None
    assert made(tmp_path) == sweep


def test_the_base_the_files_settings_and_those_of_the_command_line_apply_in_this_order(tmp_path):
    base = {"training": {"steps": 20}, "optim": {"lr": 0.5, "warmup_steps": 7}, "run": {"register_as": "digits"}}
    sweep = made(tmp_path, "training.steps=40", run_file=base, set={"training.steps": 30, "optim.lr": 0.25})
    config = sweep.trials[-1].config
    assert (config.training.steps, config.optim.lr, config.optim.warmup_steps) == (40, 0.25, 7)
    assert config.run.register_as is None


def test_a_whole_group_can_be_varied(tmp_path):
    values = [{"kind": "linear", "beta_end": 0.01}, {"kind": "cosine", "s": 0.02}]
    schedules = [
        trial.config.process.schedule.model_dump()
        for trial in made(tmp_path, space={"process.schedule": grid(*values)}).trials
    ]
    assert [
        {name: schedule[name] for name in value} for schedule, value in zip(schedules, values, strict=True)
    ] == values


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("process.shedule.kind", "did you mean process.schedule.kind?"),
        ("nonsense", "unknown setting"),
        ("run.experiment", "must not change results"),
        ("parallel.workers", "must not change results"),
        ("training.steps", "must not change results"),
        ("training", "must not change results"),
        ("seed", "must be the same in all trials"),
        ("data.split_seed", "must be the same in all trials"),
        ("evaluation.samples", "must be the same in all trials"),
        ("evaluation", "must be the same in all trials"),
    ],
)
def test_paths_that_a_sweep_cannot_vary(tmp_path, path, said):
    line = refusal(tmp_path, space={path: grid(1, 2)})
    assert line.startswith(f"space.{path}: ")
    assert said in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"space": {"optim.lr": {"kind": "gird", "values": [1]}}},
            "space.optim.lr.kind = 'gird': allowed: 'grid'; did you mean grid?",
        ),
        ({"space": {"optim.lr": grid()}}, "space.optim.lr.values = []: allowed: one value or more"),
        ({"space": {"optim.lr": grid(0.1, 0.2, 0.1)}}, "space.optim.lr.values = [0.1, 0.2, 0.1]: 0.1 is given twice"),
        ({"space": {"optim.lr": grid(1, 1.0)}}, "space: lr=1 and lr=1.0 are the same method"),
        ({"space": {"optim.lr": {"kind": "grid"}}}, "space.optim.lr.values: missing"),
        ({"space": {"optim.lr": {"kind": "grid", "value": [1], "values": [1]}}}, "did you mean space.optim.lr.values?"),
        ({"space": {}}, "space = {}: "),
        ({"spaces": {}}, "spaces: unknown key; did you mean space?"),
        ({"name": "a b"}, "name = 'a b': "),
        ({"concurrent_trials": 0}, "concurrent_trials = 0: "),
        ({"base": "other.yaml"}, "other.yaml: No such file or directory"),
        ({"set": {"optim.rl": 1}}, "optim.rl: unknown key; did you mean optim.lr?"),
        ({"set": {"optim.lr.x": 1}}, "set: optim.lr.x: optim.lr is a value, not a group of settings"),
        ({"set": {"process.schedule.kind": "linear"}}, "set.process.schedule.kind: the sweep varies"),
        ({"set": {"process.schedule.s": 0.01}}, "set.process.schedule.s: the sweep varies process.schedule.kind"),
        ({"space": {"optim.lr": grid(*range(1, 40)), "optim.eps": grid(*range(1, 40))}}, "space: 1521 trials"),
        ({"space": {"process.schedule": grid("x"), "process.schedule.s": grid(1)}}, "is part of process.schedule"),
    ],
)
def test_files_that_are_refused(tmp_path, changes, said):
    run_file = {"optim": {"lr": 0.5}}
    assert said in refusal(tmp_path, run_file=run_file, **changes)


def test_an_invalid_combination_is_named_with_the_field(tmp_path):
    line = refusal(tmp_path, space={"process.schedule.kind": SCHEDULES, "process.num_train_timesteps": grid(1000, 15)})
    assert line.startswith("trial schedule=linear num_train_timesteps=15: ")
    assert "num_train_timesteps" in line.partition(": ")[2]


def test_a_setting_that_only_one_kind_has_is_refused_for_the_others(tmp_path):
    line = refusal(tmp_path, space={"process.schedule.kind": SCHEDULES, "process.schedule.s": grid(0.008)})
    assert line.startswith("trial schedule=linear s=0.008: process.schedule.s: unknown key")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("run.name=x", "run.name = 'x': trials are named after the sweep"),
        ("process.schedule.kind=linear", "--set process.schedule.kind: the sweep varies"),
        ("data.source=/nowhere.npy", "data.source = '/nowhere.npy': no such data"),
        ("optim.lr=fast", "optim.lr = 'fast'"),
        ("optim", "--set 'optim': allowed: dotted.path=value"),
    ],
)
def test_settings_of_the_command_line_that_are_refused(tmp_path, setting, said):
    assert said in refusal(tmp_path, setting)


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path, capsys):
    path = written(tmp_path, space={"optim.rl": grid(1)})
    assert main(["run", "--config", str(path)]) == 2
    assert capsys.readouterr().err == "error: space.optim.rl: unknown setting; did you mean optim.lr?\n"
    assert main(["run", "--config", str(tmp_path / "missing.yaml")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_short_names_say_what_differs():
    assert list(short_names(SPACE).values()) == ["schedule", "weighting"]
    assert list(short_names(["optim.eps", "ema.eps"]).values()) == ["optim.eps", "ema.eps"]


def test_trials_share_their_random_numbers(tmp_path):
    """Common random numbers: the schedule and the weighting change no draw, bit by bit."""
    first, last = (
        BatchPlan(
            seed=trial.config.seed,
            dataset_size=1437,
            training=trial.config.training,
            process=make_process(trial.config.process),
            objective=trial.config.objective,
            image_shape=(1, 8, 8),
        ).rows(step=13, first=3, count=9)
        for trial in (made(tmp_path).trials[0], made(tmp_path).trials[-1])
    )
    assert first.images.tolist() == last.images.tolist()
    for name in ("t", "eps", "row_mask"):
        assert torch.equal(getattr(first, name), getattr(last, name))


def test_a_dry_run_and_help_load_neither_torch_nor_ray(tmp_path):
    code = (
        "import sys; from tuning.__main__ import main; "
        f"main(['run', '--config', {str(written(tmp_path))!r}, '--dry-run', '--json']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'mlflow', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    assert not (tmp_path / "storage").exists()


def test_the_example_file_is_a_grid_of_four():
    config, trials = read_sweep(ROOT / "configs" / "sweep-digits.yaml", [])
    assert (config.name, len(trials), trials[0].config.training.steps) == ("digits-schedules", 4, 600)
