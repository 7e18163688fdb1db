"""A sweep's name, its state, and what is kept of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.tuning.conftest import SCHEDULES, finish, made, written
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.run.paths import RunPaths
from tuning.__main__ import main
from tuning.mlflow_record import metrics
from tuning.plan import plan
from tuning.scores import rows
from tuning.space import Trial
from tuning.sweep import Sweep


def registered(sweep: Sweep) -> Sweep:
    with sweep.locked():
        sweep.register_name("d" * 64)
    return sweep


@pytest.mark.parametrize(
    "same", [["training.steps=99"], ["parallel.workers=1"], ["run.experiment=other"], ["run.log_every=3"]]
)
def test_what_changes_no_result_keeps_the_name(tmp_path, same):
    sweep = registered(made(tmp_path))
    again = made(tmp_path, *same)
    assert again.digest == sweep.digest
    assert again.states() == ["new"] * 4


@pytest.mark.parametrize("other", ["base", "space"])
def test_a_name_taken_by_another_sweep_is_refused(tmp_path, other):
    old = registered(made(tmp_path))
    new = (
        made(tmp_path, "optim.lr=0.5")
        if other == "base"
        else made(tmp_path, space={"process.schedule.kind": SCHEDULES})
    )
    with pytest.raises(InputError) as caught:
        new.states()
    for part in ("name = 'mine'", old.digest[:8], new.digest[:8], str(old.root)):
        assert part in str(caught.value)


def test_one_process_at_a_time_works_on_a_sweep(tmp_path):
    sweep = made(tmp_path)
    with sweep.locked(), pytest.raises(InputError, match="another process is running this sweep"), sweep.locked():
        pass


def test_the_plan_counts_what_trials_at_one_time_ask_for(tmp_path):
    sweep = made(tmp_path, concurrent_trials=3)
    finish(sweep.trials[1], 2.0, 0.1)
    described = plan(sweep, sweep.states())
    assert described["sweep"]["state"] == "new"
    assert [trial["state"] for trial in described["trials"]] == ["new", "done", "new", "new"]
    assert described["bundles"] == [{"CPU": 1.0}] * 6
    assert described["bundles_where_gpus_suffice"] == [{"CPU": 1.0, "GPU": 1.0}] * 6
    assert "bundles_where_gpus_suffice" not in plan(made(tmp_path, "parallel.device=cpu"), sweep.states())
    assert len(plan(made(tmp_path, concurrent_trials=99), sweep.states())["bundles"]) == 8


def test_a_sweep_is_done_once_its_trials_are_and_mlflow_has_them(tmp_path, monkeypatch):
    from tuning import mlflow_record as record

    sweep = registered(made(tmp_path))
    assert plan(sweep, sweep.states())["sweep"]["state"] == "resumable"
    for number, trial in enumerate(sweep.trials):
        finish(trial, 2.0 + number, 0.1)
    assert plan(sweep, sweep.states())["sweep"]["state"] == "resumable"
    sweep.update_record(recorded=record._results_digest(sweep))
    assert plan(sweep, sweep.states())["sweep"]["state"] == "done"


def test_a_sweep_is_read_back_from_wherever_its_storage_is_mounted_today(tmp_path):
    sweep = registered(made(tmp_path))
    finish(sweep.trials[0], 2.5, 0.1)
    moved = (tmp_path / "storage").rename(tmp_path / "moved")
    again = Sweep.load(moved, "mine")
    assert (again.digest, again.space) == (sweep.digest, sweep.space)
    assert rows(again)[0]["vlb_bpd"] == 2.5


def test_an_unknown_sweep_is_refused_with_those_there_are(tmp_path, capsys):
    assert main(["report", "other"]) == 2
    assert "none yet" in capsys.readouterr().err
    registered(made(tmp_path))
    assert main(["report", "other"]) == 2
    assert "SWEEP = 'other'" in (line := capsys.readouterr().err)
    assert line.rstrip().endswith("allowed: mine")


def test_a_failure_is_kept_until_the_trial_runs_again(tmp_path):
    sweep = registered(made(tmp_path))
    name = sweep.trials[1].name
    sweep.record_failure(name, "out of memory")
    assert [(row["state"], row["reason"]) for row in rows(sweep)][1] == ("failed", "out of memory")
    sweep.record_failure(name, None)
    assert sweep.failures() == {}


def test_metrics_have_names_that_mlflow_takes(tmp_path):
    values = [{"kind": "linear", "beta_end": 0.01}, {"kind": "cosine"}]
    sweep = registered(made(tmp_path, space={"process.schedule": {"kind": "grid", "values": values}}))
    finish(sweep.trials[1], 2.5, 0.1, 30.0)
    assert metrics(rows(sweep)) == {
        "vlb_bpd/schedule---kind-- -cosine--": 2.5,
        "frechet_classifier/schedule---kind-- -cosine--": 30.0,
    }


def test_a_dry_run_for_people_and_for_machines(tmp_path, capsys):
    path = str(written(tmp_path))
    assert main(["run", "--config", path, "--dry-run"]) == 0
    assert "schedule=cosine weighting=vlb  would start" in capsys.readouterr().out
    assert main(["run", "--config", path, "--dry-run", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["trials"][0]["settings"] == {
        "process.schedule.kind": "linear",
        "objective.weighting.kind": "simple",
    }


def test_data_that_cannot_be_measured_is_refused_before_anything_is_claimed(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    np.save(tmp_path / "small.npy", np.zeros((100, 8, 8), np.uint8))
    deep = {"channels": [8] * 6, "attention": [False] * 6}
    run_file = {"data": {"source": str(tmp_path / "small.npy")}, "network": deep}
    assert main(["run", "--config", str(written(tmp_path, run_file))]) == 2
    assert "network.channels" in capsys.readouterr().err
    assert not list((tmp_path / "storage").rglob("sweep.json"))


def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main(["run", "--config", str(written(tmp_path))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: RAY_ADDRESS = 127.0.0.1:9: no Ray cluster answers")
    assert captured.err.count("\n") == 1
    assert not list((tmp_path / "storage").rglob("*.json"))


def test_a_sweep_goes_on_after_a_default_changed(tmp_path, monkeypatch):
    """What was started has its configuration stored; another value that is asked for is another sweep."""
    sweep = made(tmp_path)
    with sweep.locked():
        sweep.register_name("d" * 64)
    record = sweep.record
    for trial in record["trials"]:
        trial["config"]["evaluation"]["vlb_draws"] = 128  # the default of then
    configs = [RunConfig.model_validate_json(json.dumps(trial["config"])) for trial in record["trials"]]
    older = [Trial(trial["settings"], config) for trial, config in zip(record["trials"], configs, strict=True)]
    digest = replace(sweep, trials=tuple(older)).digest
    sweep.update_record(trials=record["trials"], digest=digest)

    again = made(tmp_path)
    assert again.digest == digest != sweep.digest
    assert again.states() == ["new"] * 4
    assert [trial.name for trial in again.trials] == [trial.name for trial in sweep.trials]
    with pytest.raises(InputError, match="taken by another sweep"):
        made(tmp_path, "evaluation.vlb_draws=32").states()


def test_a_sweep_does_not_go_on_with_other_data(tmp_path):
    sweep = made(tmp_path)
    assert sweep.dataset_fingerprint is None
    sweep.check_dataset("e" * 64)
    with sweep.locked():
        sweep.register_name("d" * 64)
    assert made(tmp_path).dataset_fingerprint == "d" * 64
    sweep.check_dataset("d" * 64)
    with pytest.raises(InputError, match=r"not the data that sweep 'mine' was begun with: their fingerprint was dddd"):
        sweep.check_dataset("e" * 64)


def test_trials_on_other_data_are_not_ranked(tmp_path):
    """As a sweep of before has them, which went on after its data had changed."""
    sweep = made(tmp_path)
    for trial, vlb in zip(sweep.trials, (3.0, 2.9, 2.8, 2.7), strict=True):
        finish(trial, vlb, 0.01)
    other = RunPaths.of(sweep.trials[3].config)
    for file in (other.summary, other.identity):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "dataset_fingerprint": "e" * 64}))
    table = rows(sweep)
    assert [row["state"] for row in table] == ["done", "done", "done", "failed"]
    assert table[3]["vlb_bpd"] is None
    assert table[3]["reason"].startswith("scored on other data (eeeeeeee) than the sweep's (")
    assert table[2]["best"] == ["vlb_bpd"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x00" * 40, b"\xff\xfe"])
def test_a_damaged_record_is_made_again_from_the_command_and_the_trials(tmp_path, content):
    sweep = made(tmp_path)
    with sweep.locked():
        sweep.register_name("d" * 64)
    finish(sweep.trials[0], 3.0, 0.01)
    before = sweep.record
    for name in ("sweep.json", "failures.json"):
        (sweep.root / name).write_bytes(content)
    again = made(tmp_path)
    assert again.is_damaged
    assert again.failures() == {}
    assert again.states() == ["done", "new", "new", "new"]
    again.register_name(again.dataset_fingerprint)
    assert (again.record, again.is_damaged) == (before, False)
