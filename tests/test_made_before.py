"""What earlier versions wrote loads in this one, to the bit, and means what it meant: tests/made_before."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from safetensors import safe_open
from safetensors.torch import load_file

from cluster.accounts import Accounts
from cluster.resources import DRIVER, Bundle, Shape, format_gang
from cluster.spec import Ending
from cluster.store import Selection, Store
from diffusion.config import Later
from diffusion.config.errors import models_of
from diffusion.package import load_package, verify_package
from tests.conftest import ROOT
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.config import history
from trainer.config.data import DataConfig
from trainer.config.load import load_config
from trainer.config.run_config import RunConfig, canonical
from trainer.data.dataset import open_dataset
from trainer.data.prepare import prepare, scan_source
from trainer.ema.snapshots import ema_sources
from trainer.evaluate.blocks import Block
from trainer.evaluate.comparison import compare, read
from trainer.evaluate.evaluation import Evaluation
from trainer.run.identity import read_run, read_summary, resolve_run
from trainer.run.journal import decode, encode
from trainer.run.manifest import complete_steps
from trainer.run.summary import evaluated_from_json, summary_from_json
from tuning.space import read_sweep
from tuning.sweep import Sweep

BEFORE = ROOT / "tests" / "made_before" / "2026-11-28"
RUNS = ("kept-699ce91b", "interrupted")


@pytest.fixture
def storage(tmp_path) -> Path:
    """The storage of then, mounted elsewhere."""
    for name in ("kept", "sweeps"):
        shutil.copytree(BEFORE / name, tmp_path / name)
    return tmp_path


def command(storage: Path, *sets: str) -> RunConfig:
    """What the command of then means today."""
    places = [f"run.storage={storage}", f"run.tracking_uri=sqlite:///{storage}/mlflow.db"]
    return load_config(BEFORE / "run.yaml", [*places, *sets])


def test_the_command_of_then_finds_its_run_and_its_method_has_the_digest_that_it_had(storage):
    resolved = resolve_run(command(storage))
    assert (resolved.paths.root, resolved.state, resolved.notes) == (storage / "kept" / RUNS[0], "done", ())
    record = json.loads(resolved.paths.identity.read_text())
    assert resolved.config.method_sha256 == record["method_sha256"]
    assert resolved.config.run.name == RUNS[0]
    longer = resolve_run(command(storage, "training.steps=12"))
    assert (longer.state, longer.config.training.steps) == ("resumable", 12)


def test_a_named_run_goes_on_with_what_is_stored_with_it(storage):
    resolved = resolve_run(command(storage, "run.name=interrupted", "ema.snapshot_every=64", "training.steps=80"))
    assert (resolved.state, resolved.config.training.steps, resolved.config.run.log_every) == ("resumable", 80, 2)
    assert resolved.config.ema.snapshot_every == 64
    assert find_latest(resolved.paths.checkpoints).folder == resolved.paths.checkpoints / "step-00000072"


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("what", ["checkpoints", "ema"])
def test_a_checkpoint_is_read_as_it_was_written_to_the_bit(storage, name, what):
    folder = storage / "kept" / name / what
    assert complete_steps(folder)
    for step in complete_steps(folder):
        checkpoint = Checkpoint(folder / f"step-{step:08d}")
        checkpoint.verify()
        kinds = ("ema_0", "ema_1") if what == "ema" else ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")
        covered = dict.fromkeys(kinds, 0)
        for file in sorted(checkpoint.folder.glob("rank-*.safetensors")):
            with safe_open(file, "pt") as shard:
                for key in shard.keys():  # noqa: SIM118 - no mapping
                    kind, parameter, offset = key.split("|")
                    stored = shard.get_tensor(key)
                    assert torch.equal(checkpoint.read(kind, parameter, int(offset), stored.numel()), stored)
                    covered[kind] += stored.numel()
        total = sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values())
        assert covered == dict.fromkeys(kinds, total)


def test_a_package_is_loaded_as_it_was_written_and_made_again_byte_for_byte(storage, tmp_path):
    from trainer.ema.export import write_package

    config, paths = read_run(storage / "kept" / RUNS[0])
    summary = read_summary(paths)
    assert summary is not None
    assert verify_package(paths.package) == summary.package_sha256
    denoiser, package = load_package(paths.package)
    assert isinstance(denoiser.network, torch.nn.Module)
    stored, loaded = load_file(paths.package / "model.safetensors"), denoiser.network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    latest = find_latest(paths.checkpoints).folder
    assert latest is not None
    average = ema_sources(paths.ema, config.ema, Checkpoint(latest)).tensors(config.ema.sigma_rel)
    digest = write_package(tmp_path / "again", config, package.image_shape, average, None)
    assert digest == summary.package_sha256
    for file in paths.package.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_every_line_of_a_journal_is_a_record_that_is_written_the_same(name):
    lines = (BEFORE / "kept" / name / "journal.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        record = decode(json.loads(line))
        assert record is not None
        assert encode(record) == json.loads(line)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every float in nested objects, by its dotted path: what was a metric in MLflow then."""
    flattened = dict[str, float]()
    for name, value in values.items():
        if isinstance(value, dict):
            flattened |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            flattened[f"{prefix}{name}"] = value
    return flattened


def test_a_summary_is_written_as_it_was_and_draws_the_same_metrics():
    values = json.loads((BEFORE / "kept" / RUNS[0] / "results" / "summary.json").read_text())
    summary = summary_from_json(values)
    assert summary.to_json() == values
    assert summary.metrics() == flat(values)


def test_an_evaluation_is_written_as_it_was_and_can_be_compared():
    values = json.loads((BEFORE / "evaluation" / "evaluation.json").read_text())
    evaluated = evaluated_from_json(values)
    others = {"model", "package_sha256", "dataset_fingerprint", "evaluation"}
    assert evaluated.to_json() == {name: value for name, value in values.items() if name not in others}
    assert evaluated.metrics() == flat({name: value for name, value in values.items() if name != "evaluation"})
    ours, run = read(BEFORE / "evaluation", "a"), read(BEFORE / "kept" / RUNS[0] / "results", "b")
    assert set(ours.per_image) == {"vlb_bpd", "continuous_vlb_bpd", "nll_bpd"}
    assert compare(ours, run, "vlb_bpd").word == "undecided"


def test_blocks_of_an_evaluation_are_found_and_not_computed_again(tmp_path):
    """The folder is named by what the blocks depend on: the same name, the same blocks."""
    values = json.loads((BEFORE / "evaluation" / "evaluation.json").read_text())
    config, paths = read_run(BEFORE / "kept" / RUNS[0])
    settings = type(config.evaluation).model_validate_json(canonical(values["evaluation"]))
    data = prepare(config.data, tmp_path)
    evaluation = Evaluation(
        package=paths.package, network="mlp", data=data, config=settings, results=BEFORE / "evaluation",
        references=tmp_path, tasks=1, cpus=1.0,
    )  # fmt: skip
    kept = [folder for folder in (BEFORE / "evaluation" / "blocks").iterdir() if folder.is_dir()]
    assert [evaluation.blocks] == kept
    for kind, names in {"vlb": {"prior", "diffusion", "reconstruction"}, "nll": {"nll", "evaluations"}}.items():
        for first in range(0, data.info.heldout, 32):
            block = Block(kind, settings.seed, first, min(32, data.info.heldout - first)).load(kept[0])  # type: ignore[arg-type]
            assert block is not None
            assert set(block) == names


def test_a_queue_goes_on(tmp_path):
    shutil.copytree(BEFORE / "queue", tmp_path / "queue")
    store = Store.open(f"sqlite:///{tmp_path}/queue/queue.db", create=False)
    states = {job.name: job.state for job in store.jobs()}
    assert states == {
        "done": "succeeded", "preempted": "queued", "cancelled": "cancelled", "running": "running",
        "waiting": "queued", "failed": "failed",
    }  # fmt: skip
    (running,) = store.attempts()
    assert store.end_attempt(running, Ending(status="succeeded", exit_code=0)).state == "succeeded"
    preempted = next(job for job in store.jobs("queued") if job.name == "preempted")
    again = store.begin_attempt(preempted.id)
    assert again is not None
    assert again.number == 2
    assert preempted.gangs == [[{"CPU": 1.0}, {"CPU": 1.0}]]
    assert next(event.text for event in store.events(preempted.id)) == "submitted with priority 5"


def test_a_queue_of_many_gangs_goes_on(tmp_path):
    shutil.copytree(ROOT / "tests" / "made_before" / "2026-11-29" / "queue", tmp_path / "queue")
    store = Store.open(f"sqlite:///{tmp_path}/queue/queue.db", create=False)
    assert [(job.name, job.state, job.hold) for job in store.jobs()] == [
        ("done", "succeeded", None), ("preempted", "queued", None), ("cancelled", "cancelled", None),
        ("running", "running", None), ("starting", "starting", None), ("waiting", "queued", None),
        ("failed", "failed", None), ("held", "queued", "held"),
        ("job.py-0", "queued", None), ("job.py-1", "queued", None),
    ]  # fmt: skip
    vision = Accounts(store).terms(time.time())["vision"]
    assert (vision.weight, vision.guaranteed, vision.max_running) == (2.0, 0.25, 9)
    preempted, waiting = store.job(2), store.job(6)
    assert (preempted.queue, preempted.preemptions, waiting.after) == ("vision", 1, {"4": "any"})
    shape = Shape.of([[Bundle.model_validate(each) for each in gang] for gang in preempted.gangs], DRIVER)
    assert format_gang(shape.gangs[0]) == "2 x (1 CPU, 1 GPU where zone is a)"
    [left] = store.attempts(2)
    assert (left.asked_by, left.step, left.saved_step) == (4, 25, 20)
    assert (left.placement or {})["bundles"] == ["n1", "n2"]
    running, starting = store.attempts()
    assert store.end_attempt(running, Ending(status="failed", exit_code=75)).state == "queued"
    assert store.end_attempt(starting, Ending(status="lost")).state == "queued"
    store.release(8)
    again = store.begin_attempt(2)
    assert again is not None
    assert again.number == 2
    assert [job.id for job in store.select(Selection(array=9))] == [9, 10]


def test_a_sweep_is_the_one_that_it_was(storage):
    places = [f"run.storage={storage}", f"run.tracking_uri=sqlite:///{storage}/mlflow.db", "run.register_as=null"]
    sweep = Sweep.of(*read_sweep(BEFORE / "sweep.yaml", places))
    assert sweep.digest == sweep.record["digest"]
    assert sweep.states() == ["new"] * 4
    loaded = Sweep.load(storage, "kept-sweep")
    assert [trial.config.method_sha256 for trial in loaded.trials] == [t.config.method_sha256 for t in sweep.trials]
    assert list(loaded.failures().values()) == ["training: lost"]


def test_prepared_data_are_read_and_their_plan_is_the_same():
    data = open_dataset(BEFORE / "prepared")
    assert data.images("train")[:].shape == (7, 4, 4, 3)
    assert np.unique(data.labels("heldout")).tolist() == [0, 1]
    (folder,) = (BEFORE / "datasets").iterdir()
    plan = json.loads((folder / "dataset.json").read_text())["plan"]
    assert scan_source(DataConfig()).plan == plan
    assert plan.startswith(folder.name)


def groups(model: type[BaseModel], models: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Every group of settings below a model, by the name of its class."""
    if model.__name__ not in models:
        models[model.__name__] = model
        for field in model.model_fields.values():
            for part in models_of(field.annotation):
                groups(part, models)
    return models


def test_a_field_that_is_new_is_marked_and_a_default_that_changed_is_in_the_history():
    """Without either, every existing run would be taken by another method."""
    known: dict[str, dict[str, Any]] = json.loads((BEFORE / "settings.json").read_text())
    changed = {change.path.rpartition(".")[2] for change in history.CHANGED_DEFAULTS}
    for name, model in groups(RunConfig, {}).items():
        if name not in known:
            continue
        assert set(known[name]) <= set(model.model_fields), f"{name}: a field that runs were made with is gone"
        for field_name, field in model.model_fields.items():
            later = any(isinstance(each, Later) for each in field.metadata)
            assert later or field_name in known[name], (
                f"{name}.{field_name} is new: mark it with diffusion.config.Later"
            )
            if field_name in known[name] and not field.is_required():
                default = to_jsonable_python(field.get_default(call_default_factory=True))
                same = default == known[name][field_name] or isinstance(default, dict)
                assert same or field_name in changed, f"{name}.{field_name}: put its default in trainer.config.history"
