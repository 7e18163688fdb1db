"""What DeepSpeed is told: the same as ever where nothing is asked for, and each extra where DeepSpeed looks for it."""

import pytest

from trainer.config.load import apply_sets, validate
from trainer.config.run_config import RunConfig
from trainer.worker.deepspeed_config import deepspeed_config, exchanges_at_once, is_alone


def told(*sets: str) -> dict:
    return deepspeed_config(validate(apply_sets({"network": {"kind": "unet"}}, list(sets))), workers=2)


def test_nothing_is_added_by_default():
    assert deepspeed_config(RunConfig(), workers=2) == {
        "train_micro_batch_size_per_gpu": 64,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # the optimizer clips
        "zero_optimization": {"stage": 2, "compute_grad_norm": False},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},
    }


@pytest.mark.parametrize("stage", range(4))
def test_a_rank_is_alone_unless_there_are_others_or_the_hosts_memory_takes_a_part(stage):
    base = [f"parallel.zero_stage={stage}"]
    assert is_alone(validate(apply_sets({}, base)), workers=1)
    assert not is_alone(validate(apply_sets({}, base)), workers=2)
    if stage:
        base.append("parallel.deepspeed.offload_optimizer=cpu")
        assert not is_alone(validate(apply_sets({}, base)), workers=1)


@pytest.mark.parametrize(
    ("stage", "workers", "device", "parameters", "at_once"),
    [
        (1, 2, "cpu", 1000, True),
        (2, 3, "cpu", 1000, True),
        (2, 2, "cuda", 1000, False),
        (2, 2, "cpu", 1001, False),
        (0, 2, "cpu", 1000, False),
        (3, 2, "cpu", 1000, False),
        (2, 1, "cpu", 1000, False),
    ],
)
def test_gradients_are_exchanged_at_once_on_cpus_if_one_bucket_would_hold_them(
    stage, workers, device, parameters, at_once
):
    extra = ["parallel.deepspeed.reduce_bucket_size=1000"] if stage else []
    config = validate(apply_sets({}, [f"parallel.zero_stage={stage}", *extra]))
    assert exchanges_at_once(config, parameters, workers, device) == at_once


def test_extras_are_where_deepspeed_looks_for_them():
    sets = ["parallel.deepspeed.offload_optimizer=cpu", "parallel.deepspeed.overlap_comm=false"]
    sets += ["parallel.deepspeed.reduce_bucket_size=1000", "parallel.deepspeed.activation_checkpointing=true"]
    two = told(*sets, "parallel.deepspeed.allgather_bucket_size=2000")
    assert two["zero_optimization"] == {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 2000,
    }
    assert two["zero_force_ds_cpu_optimizer"] is False
    three = told(
        "parallel.zero_stage=3",
        "parallel.deepspeed.offload_parameters=cpu",
        "parallel.deepspeed.stage3_prefetch_bucket_size=5",
        "parallel.deepspeed.stage3_param_persistence_threshold=0",
    )
    assert three["zero_optimization"] == {
        "stage": 3,
        "offload_param": {"device": "cpu", "pin_memory": True},
        "stage3_prefetch_bucket_size": 5,
        "stage3_param_persistence_threshold": 0,
    }
