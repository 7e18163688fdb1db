"""Checkpoints are written while training goes on."""

import threading

import pytest
import torch

from tests.oracles.checkpoints import CONFIG, PARAMETERS
from tests.oracles.world import FlatMasters, ThreadWorld
from trainer.checkpoint.background import AsyncCheckpointWriter
from trainer.checkpoint.fragments import fragments_of
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.shard import write_shard
from trainer.checkpoint.writer import manifest_fields
from trainer.run.attempt import Fence, SupersededError, begin_attempt
from trainer.run.manifest import complete_steps, step_folder


def writer_of(folder, monkeypatch):
    """A writer in a world of one, and how to give it the checkpoint of a step."""
    world = ThreadWorld(1)
    monkeypatch.setattr(world, "get_rank", lambda: 0)
    for module in ("writer", "background"):
        monkeypatch.setattr(f"trainer.checkpoint.{module}.dist", world)
    folder.mkdir(parents=True, exist_ok=True)
    begin_attempt(folder / "attempt", "mine")
    masters, writer, done = FlatMasters(PARAMETERS, 0, 1), AsyncCheckpointWriter(), list[int]()

    def begin(step, attempt="mine"):
        fragments = fragments_of(masters.fragments, {"param": masters.flats})
        fence = Fence(folder / "attempt", attempt)
        writer.save(
            folder,
            fragments,
            manifest_fields(CONFIG, masters.shapes(), (1, 4, 4), step),
            fence,
            lambda: done.append(step),
        )

    return masters, writer, begin, done


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_leak_into_it(tmp_path, monkeypatch):
    masters, writer, begin, done = writer_of(tmp_path, monkeypatch)
    released, real = threading.Event(), write_shard

    def slowly(path, fragments):
        assert released.wait(20)
        return real(path, fragments)

    monkeypatch.setattr("trainer.checkpoint.writer.write_shard", slowly)
    begin(1)
    masters.flats[0].add_(100)  # the optimizer's next step, in place
    assert complete_steps(tmp_path) == done == []
    released.set()
    begin(2)
    writer.close()
    assert done == complete_steps(tmp_path) == [1, 2]
    assert torch.equal(Checkpoint(step_folder(tmp_path, 1)).tensor("param", "bias"), PARAMETERS["bias"])
    assert torch.equal(Checkpoint(step_folder(tmp_path, 2)).tensor("param", "bias"), PARAMETERS["bias"] + 100)


def test_what_goes_wrong_in_the_writers_thread_is_raised_at_the_next_wait(tmp_path, monkeypatch):
    _, writer, begin, done = writer_of(tmp_path, monkeypatch)
    begin(1, attempt="old")
    with pytest.raises(SupersededError):
        writer.wait()
    writer.close()
    assert done == complete_steps(tmp_path) == []
