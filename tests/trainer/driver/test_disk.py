"""What a run takes of its storage: never more than estimated, refused where it cannot begin, given back when done."""

import shutil
from collections import namedtuple

import pytest

from trainer.config.load import resolve, validate
from trainer.data.manifest import DatasetInfo
from trainer.driver import disk
from trainer.driver.disk import DiskUse, check_space, estimate, give_back, held, size
from trainer.errors import InputError
from trainer.run.paths import RunPaths

INFO = DatasetInfo("digits", "d" * 64, (1, 8, 8), 1437, 360, 10)
Free = namedtuple("Free", "total used free")


def configured(tmp_path, steps=100, **run):
    places = {"storage": str(tmp_path), "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    values = {"training": {"steps": steps}, "run": {**places, **run}, "evaluation": {"samples": 130}}
    return resolve(validate(values))


@pytest.mark.parametrize(
    ("steps", "settings", "checkpoints", "snapshots"),
    [
        (100, {"checkpoint_every": 250}, 1, 12),
        (1000, {"checkpoint_every": 250}, 4, 31),
        (100_000, {"checkpoint_every": 250}, 5, 24),
        (100_000, {"checkpoint_every": 250, "keep_checkpoints": 9}, 12, 24),
    ],
)
def test_an_estimate_counts_what_is_kept_at_a_time(tmp_path, steps, settings, checkpoints, snapshots):
    found = estimate(configured(tmp_path, steps, **settings), INFO, parameters=1000)
    assert found.checkpoints == checkpoints * 5 * 4000
    assert found.snapshots == snapshots * 2 * 4000
    assert found.package == 2 * 4000  # and MLflow's copy, beside a database of this machine
    assert found.evaluation == 1_000_000 + 130 * (64 + 8 * 64)
    assert found.total == found.checkpoints + found.snapshots + found.package + found.evaluation


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (10**9, None),
        (50_000, "storage may run full: the run takes up to 300.0 kB, and has 0 B of it; 50.0 kB are free"),
        (23_999, "refused"),
    ],
)
def test_too_little_room_is_said_before_the_start(tmp_path, monkeypatch, free, said):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Free(0, 0, free))
    config, need = configured(tmp_path), DiskUse(200_000, 50_000, 8_000, 42_000)
    if said == "refused":
        with pytest.raises(InputError, match=r"run\.storage = .*: 24\.0 kB free; allowed: at least 24\.0 kB"):
            check_space(need, config, RunPaths.of(config), 1000)
        return
    line, warning = check_space(need, config, RunPaths.of(config), 1000)
    assert line.startswith("disk: at most 300.0 kB (checkpoints 200.0 kB, EMA snapshots 50.0 kB, package 8.0 kB, eval")
    assert (warning is None) == (said is None)
    assert said is None or str(warning).startswith(said)


def test_what_a_run_has_already_is_not_needed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Free(0, 0, 150))
    config = configured(tmp_path)
    paths = finished(config)
    assert check_space(DiskUse(400, 0, 0, 0), config, paths, 1000)[1] is None
    assert "has 300 B of it" in str(check_space(DiskUse(800, 0, 0, 0), config, paths, 1000)[1])


def finished(config) -> RunPaths:
    """A run's folder of 300 bytes: two checkpoints, a snapshot, a package and results."""
    paths = RunPaths.of(config)
    for folder in (
        paths.checkpoints / "step-00000050",
        paths.checkpoints / "step-00000100",
        paths.ema / "step-00000008",
    ):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(bytes(10))
        (folder / "rank-0.shard").write_bytes(bytes(40))
    for folder in (paths.package, paths.results, paths.initial):
        folder.mkdir()
        (folder / "file").write_bytes(bytes(50))
    return paths


@pytest.mark.parametrize(
    ("keep", "checkpoints", "snapshots"), [("all", [50, 100], [8]), ("latest", [100], []), ("package", [], [])]
)
def test_what_stays_of_a_run_that_is_done(tmp_path, keep, checkpoints, snapshots):
    config = configured(tmp_path, keep=keep)
    paths = finished(config)
    assert held(paths) == DiskUse(100, 50, 50, 100)
    give_back(config, paths)
    assert disk.complete_steps(paths.checkpoints) == checkpoints
    assert disk.complete_steps(paths.ema) == snapshots
    assert paths.initial.exists() == (keep == "all")
    assert (paths.package / "file").exists()
    assert (paths.results / "file").exists()


def test_snapshots_stay_where_the_models_width_is_made_of_them(tmp_path):
    config = configured(tmp_path, keep="latest")
    config = config.model_copy(update={"ema": config.ema.model_copy(update={"sigma_rel": 0.075})})
    paths = finished(config)
    (paths.checkpoints / "refused").mkdir()
    give_back(config, paths)
    assert disk.complete_steps(paths.ema) == [8]
    assert [folder.name for folder in paths.checkpoints.iterdir()] == ["step-00000100"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (10**12, "1.0 TB"), (10**16, "10000.0 TB")],
)
def test_bytes_for_people(count, text):
    assert size(count) == text
