"""What a worker says of a GPU that is too small."""

import pytest
import torch

from trainer.config.load import apply_sets, validate
from trainer.worker import entry

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 3 are free."
ALL = ["parallel.zero_stage=3", "parallel.micro_batch_size=1", "parallel.deepspeed.activation_checkpointing=true"]


@pytest.fixture
def two_workers(monkeypatch):
    class Context:
        get_world_size = staticmethod(lambda: 2)

    monkeypatch.setattr(entry.ray.train, "get_context", Context)


@pytest.mark.parametrize(
    ("sets", "named", "left_out"),
    [
        ([], ["micro_batch_size below 64", "activation_checkpointing = true", "zero_stage", "offload_optimizer"], []),
        (ALL, ["offload_optimizer = cpu"], ["micro_batch_size", "activation_checkpointing", "zero_stage"]),
        (["network.kind=mlp"], ["micro_batch_size below 64"], ["activation_checkpointing"]),
    ],
)
def test_a_full_gpu_is_one_line_that_names_what_needs_less(two_workers, sets, named, left_out):
    config = validate(apply_sets({"training": {"global_batch_size": 128}}, sets))
    text = entry.out_of_memory(config, torch.OutOfMemoryError(CUDA))
    assert text.startswith("the GPU's memory is full: CUDA out of memory; what needs less: ")
    assert "\n" not in text
    assert all(name in text for name in named)
    assert not any(name in text for name in left_out)
