"""Power cuts for real: the disk of a run that trains is copied as it is, and each copy is mounted and gone on from."""

import gc
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.integration.ranks import Job, Ranks
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.run.journal import CheckpointSaved, Journal
from trainer.run.paths import RunPaths

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this machine has no loop devices"),
]

CUTS, STEPS = 20, 120
DISK_BYTES = 96 * 2**20


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The ext4 file system in a file; its journal is replayed, as after a power cut."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def job(tiny: Path, storage: Path) -> Job:
    """A run with a checkpoint every three steps, of which two are kept."""
    often = ["run.checkpoint_every=3", "run.keep_checkpoints=2", f"training.steps={STEPS}"]
    where = [f"run.storage={storage}", "run.name=cut", "run.tracking_uri=http://127.0.0.1:9"]
    return Job(str(tiny), [*often, *where, "parallel.workers=1", "parallel.device=cpu"])


def promised(storage: Path) -> int:
    """The newest step that the run has said to be kept."""
    journal = Journal(RunPaths(storage / "tiny" / "cut").journal)
    return max((record.step for record in journal.records(CheckpointSaved)), default=0)


def copied(image: Path, ranks: Ranks, target: Path) -> None:
    """Copy the disk in an instant, as the ranks see it: they stand still meanwhile."""
    for pid in ranks.pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        subprocess.run(["cp", "--sparse=always", image, target], check=True)
    finally:
        for pid in ranks.pids:
            os.kill(pid, signal.SIGCONT)


def assert_equal(checkpoints: Path, whole: Checkpoint) -> None:
    """The newest checkpoint is that of the unbroken run, to the bit."""
    resumed = Checkpoint(find_latest(checkpoints).folder)  # type: ignore[arg-type]
    assert resumed.step == whole.step == STEPS
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1"):
        for name in whole.shapes:
            assert torch.equal(resumed.tensor(kind, name), whole.tensor(kind, name)), (checkpoints, kind, name)


def test_twenty_moments_at_which_the_power_may_go(tiny: Path, tmp_path: Path) -> None:
    ranks, chance = Ranks(1, reuse=False), random.Random(0)  # ranks that go on would hold files of a disk
    try:
        whole = Checkpoint(find_latest(ranks.run(job(tiny, tmp_path / "whole")).checkpoints).folder)  # type: ignore[arg-type]
        image, kept = tmp_path / "disk.img", list[tuple[Path, int]]()
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        with mounted(image, tmp_path / "mounted") as storage:
            training = threading.Thread(target=ranks.run, args=(job(tiny, storage),))
            training.start()
            while not promised(storage):
                time.sleep(0.01)
            while training.is_alive() and len(kept) < CUTS:
                time.sleep(chance.uniform(0, 0.3))
                step, copy = promised(storage), tmp_path / f"copy-{len(kept)}.img"
                copied(image, ranks, copy)
                kept.append((copy, step))
            training.join()
        assert len(kept) == CUTS
        assert len({step for _, step in kept}) > CUTS // 2  # at different times of the run
        for copy, step in kept:
            with mounted(copy, tmp_path / "after") as storage:
                checkpoints = RunPaths(storage / "tiny" / "cut").checkpoints
                assert find_latest(checkpoints).step >= step > 0, copy
                ranks.run(job(tiny, storage))
                assert_equal(checkpoints, whole)
                gc.collect()  # checkpoints hold their files open
            copy.unlink()
    finally:
        ranks.close()
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
