"""A power cut at every point of a run's writes: nothing that was promised is lost, and what is left is gone on from."""

import pytest
import torch

from diffusion.config import MLPConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, PackageError, save_package, verify_package
from tests.oracles.checkpoints import CONFIG, KINDS, PARAMETERS, write
from tests.oracles.power import Disk, rebuild
from trainer.checkpoint.damaged import NoGoodCheckpointError, find_usable
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.checkpoint.writer import prune
from trainer.config.run import RunSettings
from trainer.run import identity
from trainer.run.journal import Journal, Metrics
from trainer.run.paths import RunPaths


def parameters(step):
    """What is stored at a step, each different from the others."""
    return {name: value + step for name, value in PARAMETERS.items()}


def holds(folder, step):
    """Whether a checkpoint is that of a step, to the bit."""
    stored = Checkpoint(folder)
    return stored.step == step and all(
        torch.equal(stored.tensor(kind, name), value * KINDS[kind])
        for kind in ("param", "ema_0")
        for name, value in parameters(step).items()
    )


def trained(disk, folder, steps, world=2, keep=2):
    """Checkpoints as the loop writes them; each is promised once it is complete."""
    for step in steps:
        write(folder, step, world, parameters(step))
        disk.promised = step
        prune(folder, keep)


def empty_disk(tmp_path):
    """A disk with the folder of a run's checkpoints on it, as the driver leaves it for the workers."""
    folder = tmp_path / "disk"
    (folder / "checkpoints").mkdir(parents=True)
    return folder, Disk(folder)


def cuts(disk, tmp_path):
    """What may be left of each cut, rebuilt one after the other."""
    for number, cut in enumerate(disk.cuts):
        for kind in ("synced", "named"):
            yield f"{number} {cut.after} ({kind})", cut, rebuild(getattr(cut, kind), tmp_path / "after")


@pytest.mark.parametrize("world", [1, 3])
def test_no_promised_checkpoint_is_lost(tmp_path, world):
    folder, disk = empty_disk(tmp_path)
    with disk.recording():
        trained(disk, folder / "checkpoints", [5, 10, 15, 20], world)
    assert len(disk.cuts) > 40
    for where, cut, left in cuts(disk, tmp_path):
        latest = find_latest(left / "checkpoints")
        if cut.promised is not None:
            assert latest.folder is not None, where
            assert latest.step >= cut.promised, where
        if latest.folder is not None:
            assert holds(latest.folder, latest.step), where


def test_training_goes_on_after_any_cut_to_the_same_end(tmp_path):
    folder, disk = empty_disk(tmp_path)
    with disk.recording():
        trained(disk, folder / "checkpoints", [5, 10, 15])
    for where, _, left in cuts(disk, tmp_path):
        checkpoints = left / "checkpoints"
        try:
            reached = find_usable(checkpoints).step
        except NoGoodCheckpointError:
            pytest.fail(f"{where}: a cut looks like damage to the only checkpoint")
        trained(Disk(left), checkpoints, [step for step in (5, 10, 15) if step > reached])
        assert holds(find_latest(checkpoints).folder, 15), where


def test_a_write_without_fsync_would_be_caught(tmp_path, monkeypatch):
    """The recorder finds the fault that was there: files renamed into place that had not reached the disk."""
    folder, disk = empty_disk(tmp_path)
    monkeypatch.setattr("diffusion.durable.sync", lambda _: None)
    with disk.recording():
        trained(disk, folder / "checkpoints", [5, 10])
    lost = [
        where
        for where, cut, left in cuts(disk, tmp_path)
        if cut.promised is not None and find_latest(left / "checkpoints").folder is None
    ]
    assert lost


def test_the_records_before_a_checkpoint_are_kept_with_it(tmp_path):
    folder, disk = empty_disk(tmp_path)
    journal = Journal(folder / "journal.jsonl")
    with disk.recording():
        for step in range(1, 7):
            journal.append(Metrics(step=step, values={"loss": 1.0}))
            if step % 3 == 0:
                write(folder / "checkpoints", step, 2, parameters(step), journal=journal)
    for where, _, left in cuts(disk, tmp_path):
        steps = [record.step for record in Journal(left / "journal.jsonl").records(Metrics)]
        reached = find_latest(left / "checkpoints").step
        assert steps[:reached] == list(range(1, reached + 1)), where


def test_a_runs_name_and_package_are_whole_or_not_there(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    settings = RunSettings(name="mine", experiment="e", storage=str(folder))
    config = CONFIG.model_copy(update={"run": settings})
    paths = RunPaths.of(config)
    network = MLPConfig(width=8, depth=1)
    packaged = PackageConfig(process=config.process, prediction="epsilon", network=network, image_shape=(1, 4, 4))
    disk = Disk(folder)
    with disk.recording():
        identity.register_name(config, paths, "d" * 64)
        disk.promised = "named"
        digests = [
            save_package(paths.package, packaged, build_network(network, (1, 4, 4)).state_dict()) for _ in range(2)
        ]
        disk.promised = "packaged"
    for where, cut, left in cuts(disk, tmp_path):
        moved = config.model_copy(update={"run": settings.model_copy(update={"storage": str(left)})})
        resolved = identity.resolve_run(moved)
        assert resolved.state == ("resumable" if cut.promised else resolved.state), where
        if (resolved.paths.package / "manifest.json").is_file():
            try:
                digest = verify_package(resolved.paths.package)
            except PackageError:  # half written, which its manifest tells; it is made again from the checkpoint
                digest = None
            assert digest in (*digests, None), where
            assert digest is not None or cut.promised != "packaged", where
