"""A run's name, its state and its lock."""

import json
import subprocess
import sys
import threading
import time

import pytest

from tests.oracles import summaries
from trainer.config.load import validate
from trainer.config.parallel import ParallelConfig
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.config.training import OptimConfig, TrainingConfig
from trainer.errors import InputError
from trainer.files import read_json, write_json
from trainer.run.identity import is_done, lock_timeout, locked, register_name, resolve_run
from trainer.run.manifest import with_digest
from trainer.run.paths import RunPaths
from trainer.run.summary import GateDecision, Registration


@pytest.fixture
def config(tmp_path):
    settings = RunSettings(name="mine", storage=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    return RunConfig(run=settings, training=TrainingConfig(steps=100))


@pytest.fixture
def paths(config):
    return RunPaths.of(config)


def finish(paths, step=100, registered=None):
    gate = GateDecision("champion", "of a test")
    registration = Registration(registered_model=registered, gate=gate, recorded=True)
    summaries.finish(paths, step=step, registration=registration)


def state(config):
    return resolve_run(config).state


def test_a_name_nobody_took_is_new(config, paths):
    assert state(config) == "new"


def test_a_claimed_name_is_resumable_and_says_whose_it_is(config, paths):
    register_name(config, paths, "d" * 64)
    assert state(config) == "resumable"
    assert RunConfig.model_validate_json(json.dumps(read_json(paths.identity)["config"])) == config


def test_a_claim_keeps_the_method_it_was_made_with(config, paths):
    register_name(config, paths, "d" * 64)
    before = read_json(paths.identity)["method_sha256"]
    register_name(config.model_copy(update={"training": TrainingConfig(steps=999)}), paths, "d" * 64)
    assert read_json(paths.identity)["method_sha256"] == before
    assert read_json(paths.identity)["config"]["training"]["steps"] == 999


@pytest.mark.parametrize(
    "change", [{"parallel": ParallelConfig(workers=1, zero_stage=3)}, {"training": TrainingConfig(steps=999)}]
)
def test_the_same_method_resumes_whatever_the_workers_and_the_length(config, paths, change):
    register_name(config, paths, "d" * 64)
    wanted = config.model_copy(update=change)
    resolved = resolve_run(wanted)
    assert resolved.state == "resumable"
    assert resolved.config == wanted


def test_what_the_command_does_not_name_is_as_it_was_stored(config, paths):
    register_name(
        config.model_copy(update={"optim": OptimConfig(lr=5e-4), "parallel": ParallelConfig(workers=3)}),
        paths,
        "d" * 64,
    )
    resolved = resolve_run(config.model_copy(update={"training": TrainingConfig(steps=7)}))
    assert resolved.config.optim.lr == 5e-4
    assert resolved.config.parallel.workers == 3
    assert resolved.config.training.steps == 7
    assert resolved.notes == ("goes on with settings of its own that this command does not name: optim.lr = 0.0005",)


def test_what_does_not_fit_what_is_stored_is_bad_input(config, paths):
    register_name(config.model_copy(update={"training": TrainingConfig(steps=9, global_batch_size=2)}), paths, "d" * 64)
    more = config.model_copy(update={"parallel": ParallelConfig(workers=4), "training": TrainingConfig(steps=9)})
    with pytest.raises(InputError, match=r"run\.name = 'mine': parallel\.workers = 4; allowed: at most"):
        resolve_run(more)


def test_a_name_of_another_method_is_bad_input(config, paths):
    register_name(config, paths, "d" * 64)
    other = config.model_copy(update={"optim": OptimConfig(lr=5e-4), "seed": 3})
    with pytest.raises(InputError) as caught:
        resolve_run(other)
    line = str(caught.value)
    assert line.startswith("run.name = 'mine': taken by another method")
    assert config.method_sha256[:8] in line
    assert other.method_sha256[:8] in line
    assert "optim.lr is 0.001 there and 0.0005 here and 1 more" in line
    assert "allowed: another name" in line


def manifest_of(method_sha256: str, step: int) -> str:
    return json.dumps(with_digest({"format_version": 3, "method_sha256": method_sha256, "step": step, "files": {}}))


@pytest.mark.parametrize("claimed", [False, True])
def test_a_checkpoint_of_another_method_is_refused_and_a_damaged_one_is_not(config, paths, claimed):
    if claimed:
        register_name(config, paths, "d" * 64)
    texts = ["", "[]", "{}", manifest_of(config.method_sha256, 3).replace("3", "4")]
    manifests = [paths.checkpoints / f"step-{step:08d}" / "manifest.json" for step in range(len(texts))]
    for manifest, text in zip(manifests, texts, strict=True):
        manifest.parent.mkdir(parents=True)
        manifest.write_text(text)
    assert state(config) == ("resumable" if claimed else "new")
    manifests[-1].write_text(manifest_of("f" * 64, 3))
    with pytest.raises(InputError, match=r"step-00000003: a checkpoint of another method \(ffffffff, this is "):
        resolve_run(config)


def test_what_changes_nothing_is_said(config, paths):
    def notes(**objective):
        values = {**config.model_dump(mode="json", exclude={"objective"}), "objective": objective}
        return resolve_run(validate(values)).notes

    assert notes() == ()
    assert notes(label_dropout=0.2) == (
        "objective.label_dropout has no effect: network.classes is 0, so there are no labels to drop",
    )


@pytest.mark.parametrize("evaluated", [False, True])
def test_fewer_steps_than_are_done_are_refused(config, paths, evaluated):
    """Their weights are not kept: what would be delivered is of another step."""
    register_name(config, paths, "d" * 64)
    if evaluated:
        finish(paths, 100, None)
    else:
        manifest = paths.checkpoints / "step-00000100" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(manifest_of(config.method_sha256, 100))
    fewer = config.model_copy(update={"training": TrainingConfig(steps=50)})
    with pytest.raises(InputError, match=r"training.steps = 50: mine has trained 100 steps already; allowed: 100 or"):
        resolve_run(fewer)
    enough = config.model_copy(update={"training": TrainingConfig(steps=100)})
    assert state(enough) == ("done" if evaluated else "resumable")


@pytest.mark.parametrize(
    ("schedule", "done", "exact"),
    [
        ({"kind": "constant"}, 100, True),
        ({"kind": "inverse_sqrt", "reference_steps": 20}, 100, True),
        ({"kind": "wsd", "decay": 0.2}, 80, True),  # the last step before its decay
        ({"kind": "wsd", "decay": 0.2}, 81, False),
        ({"kind": "cosine"}, 10, True),  # the last step of the warm-up
        ({"kind": "cosine"}, 11, False),
        ({"kind": "linear"}, 100, False),
    ],
)
def test_a_run_is_lengthened_only_where_its_past_stays_what_it_was(config, paths, schedule, done, exact):
    values = {**config.model_dump(mode="json"), "optim": {"warmup_steps": 10, "schedule": schedule}}
    own = validate({**values, "training": {"steps": 100}})
    register_name(own, paths, "d" * 64)
    manifest = paths.checkpoints / f"step-{done:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(manifest_of(own.method_sha256, done))
    longer = own.model_copy(update={"training": TrainingConfig(steps=200)})
    assert state(own) == "resumable"
    if exact:
        assert state(longer) == "resumable"
    else:
        with pytest.raises(
            InputError, match=rf"training.steps = 200: with optim.schedule.kind = {schedule['kind']} the steps"
        ):
            resolve_run(longer)


@pytest.mark.parametrize(
    ("step", "steps", "registered", "register_as", "done"),
    [
        (100, 100, None, None, True),
        (100, 101, None, None, False),
        (100, 100, None, "digits", False),
        (100, 100, "digits", "digits", True),
        (100, 100, "other", "digits", False),
        (100, 100, "digits", None, True),
    ],
)
def test_done_is_enough_steps_and_registered_where_asked(config, paths, step, steps, registered, register_as, done):
    register_name(config, paths, "d" * 64)
    finish(paths, step, registered)
    wanted = config.model_copy(
        update={
            "training": TrainingConfig(steps=steps),
            "run": config.run.model_copy(update={"register_as": register_as}),
        }
    )
    assert is_done(wanted, paths) is done
    assert state(wanted) == ("done" if done else "resumable")


HOLD = """
import sys, time
from pathlib import Path
from trainer.run.manifest import with_digest
from trainer.run.paths import RunPaths
from trainer.run.identity import locked
with locked(RunPaths(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_of_another_process_is_bad_input_and_goes_with_its_process(paths):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(paths.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=r"run\.name = 'mine': another process is working on this run"),
            locked(paths),
        ):
            pytest.fail("two processes hold one run")
    finally:
        holder.kill()
        holder.communicate()
    with locked(paths):
        pass


def test_a_job_of_the_queue_waits_for_its_predecessor_to_go(paths, monkeypatch):
    monkeypatch.delenv("DUALVIEW_JOB", raising=False)
    assert lock_timeout() == 0
    monkeypatch.setenv("DUALVIEW_JOB", "7")
    assert lock_timeout() > 0
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(paths.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.2, holder.kill).start()
        with locked(paths, lock_timeout()):
            assert holder.wait() != 0
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_is_free_again_after_a_failure(paths):
    with pytest.raises(KeyError), locked(paths):
        raise KeyError
    started = time.monotonic()
    with locked(paths):
        assert time.monotonic() - started < 1


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_every_file_of_a_run_lies_in_its_own_folder(config, paths, tmp_path):
    assert paths.root == tmp_path / "digits" / "mine"
    places = [getattr(paths, name) for name, value in vars(RunPaths).items() if isinstance(value, property)]
    assert len(set(places)) == len(places) > 8
    assert all(paths.root in place.parents for place in places)
