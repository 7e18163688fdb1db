"""A run, its checkpoints, its package, its evaluation and a sweep know the data they were made with."""

import json

import numpy as np
import pytest

from diffusion.config import MLPConfig
from trainer.__main__ import main
from trainer.checkpoint.reader import Checkpoint
from trainer.config.data import DataConfig
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.config.training import TrainingConfig
from trainer.data.prepare import prepare
from trainer.errors import InputError
from trainer.run import identity
from trainer.run.manifest import CheckpointError
from trainer.run.paths import RunPaths


def written(path, images):
    np.save(path, images)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def config(tmp_path, images):
    settings = RunSettings(name="mine", storage=str(tmp_path / "storage"), tracking_uri="http://127.0.0.1:9")
    return RunConfig(
        data=DataConfig(source=str(written(tmp_path / "images.npy", images))),
        network=MLPConfig(width=8, depth=1),
        training=TrainingConfig(steps=4, global_batch_size=2),
        run=settings,
    )


@pytest.fixture
def command(tmp_path, config):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    return ["--config", str(file)]


def fingerprint(config):
    return prepare(config.data, config_storage(config)).info.fingerprint


def config_storage(config):
    return RunPaths.of(config).root.parent.parent


CHANGES = {
    "added": lambda images: np.concatenate([images, images[:3]]),
    "removed": lambda images: images[1:],
    "resized": lambda images: images.repeat(2, axis=1).repeat(2, axis=2),
    "altered": lambda images: np.where(np.arange(40)[:, None, None, None] == 7, 255 - images, images),
    "reordered": lambda images: images[::-1],
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_run_does_not_go_on_with_other_data(tmp_path, images, config, command, capsys, how):
    begun = fingerprint(config)
    paths = RunPaths.of(config)
    identity.register_name(config, paths, begun)
    written(tmp_path / "images.npy", CHANGES[how](images))
    now = fingerprint(config)
    before = paths.identity.read_text()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"not the data that 'mine' was begun with: their fingerprint was {begun[:16]} and is {now[:16]}" in error
    assert "another run for these (--set run.name=" in error
    assert paths.identity.read_text() == before


def test_the_same_images_in_another_file_are_the_same_data(tmp_path, images, config):
    begun = fingerprint(config)
    written(tmp_path / "images.npy", images)  # another time of change, the same content
    assert fingerprint(config) == begun
    identity.register_name(config, RunPaths.of(config), begun)
    assert identity.check_dataset(config, RunPaths.of(config), begun) is None


def test_a_run_from_before_takes_the_present_data_once_and_says_so(config):
    paths = RunPaths.of(config)
    identity.register_name(config, paths, "d" * 64)
    record = json.loads(paths.identity.read_text())
    del record["dataset_fingerprint"]
    paths.identity.write_text(json.dumps(record))
    warning = identity.check_dataset(config, paths, "e" * 64)
    assert warning is not None
    assert "goes on with those of now (eeeeeeee)" in warning
    identity.register_name(config, paths, "e" * 64)
    assert identity.check_dataset(config, paths, "e" * 64) is None
    with pytest.raises(InputError, match="was eeeeeeeeeeeeeeee and is ffffffffffffffff"):
        identity.check_dataset(config, paths, "f" * 64)


def test_a_checkpoint_is_refused_with_other_data(tmp_path, monkeypatch):
    values = {"step": 3, "skipped": 0, "shapes": {}, "image_shape": [1, 8, 8], "data": {"fingerprint": "d" * 64}}
    monkeypatch.setattr("trainer.checkpoint.reader.read_manifest", lambda _: values)
    Checkpoint(tmp_path).check_dataset("d" * 64)
    with pytest.raises(CheckpointError, match=r"trained on other data \(dddddddddddddddd, these are eeeeeeeeeeeeeeee"):
        Checkpoint(tmp_path).check_dataset("e" * 64)
    values["data"] = {"images_seen": 6}  # of before
    Checkpoint(tmp_path).check_dataset("e" * 64)


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 50])
def test_prepared_data_whose_manifest_is_damaged_are_prepared_again(config, capsys, content):
    """The copy that a run keeps for itself; what someone prepared elsewhere is refused by name."""
    begun = prepare(config.data, config_storage(config))
    (begun.folder / "dataset.json").write_bytes(content)
    again = prepare(config.data, config_storage(config))
    assert again == begun
    assert "is damaged; the data are prepared again" in capsys.readouterr().out
