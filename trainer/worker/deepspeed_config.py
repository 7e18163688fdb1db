"""How a run maps onto DeepSpeed: micro-batches per rank, and DeepSpeed's configuration. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from trainer.config.parallel import DeepSpeedConfig
from trainer.config.run_config import RunConfig

DEFAULT_BUCKET = 500_000_000


@dataclass(frozen=True)
class BatchShape:
    """How the global batch is split: `rows` per rank (with padding), in `micro_batches` of `micro_rows` rows each."""

    rows: int
    micro_rows: int
    micro_batches: int


def batch_shape(config: RunConfig, workers: int) -> BatchShape:
    """Rows per rank and gradient accumulation; where sizes do not divide evenly, the rest is filled with padding."""
    per_rank = -(-config.training.global_batch_size // workers)
    micro_rows = min(config.parallel.micro_batch_size or per_rank, per_rank)
    micro_batches = -(-per_rank // micro_rows)
    return BatchShape(micro_rows * micro_batches, micro_rows, micro_batches)


def deepspeed_config(config: RunConfig, workers: int, at_once: bool = False) -> dict[str, Any]:
    """The whole configuration for `deepspeed.initialize`.

    Gradients are clipped, and their norm is computed, by the optimizer (`engine.ClippedAdamW`). Where the optimizer's
    state is in the host's memory, DeepSpeed insists on a norm of its own.

    Args:
        config: of the run.
        workers: number of ranks.
        at_once: gradients are exchanged at once (`exchange.py`); DeepSpeed has nothing to do with them before the step.
    """
    shape, extras = batch_shape(config, workers), config.parallel.deepspeed
    stage = config.parallel.zero_stage
    own_norm = stage in (1, 2) and extras.offload_optimizer == "none"
    return {
        "train_micro_batch_size_per_gpu": shape.micro_rows,
        "gradient_accumulation_steps": shape.micro_batches,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            **({"compute_grad_norm": False} if own_norm else {}),
            **_zero_extras(extras),
            **({"stage": 1, "contiguous_gradients": False, "overlap_comm": False} if at_once else {}),
        },
        "zero_allow_untested_optimizer": True,  # the optimizer is torch's fused AdamW, built here
        # also where its state is in the host's memory
        **({"zero_force_ds_cpu_optimizer": False} if extras.offload_optimizer == "cpu" else {}),
        "torch_autocast": {"enabled": config.training.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # they would wait for the device twice a step
    }


def is_alone(config: RunConfig, workers: int) -> bool:
    """Whether there is nobody to share with, neither another rank nor the host's memory; then DeepSpeed is not used."""
    extras = config.parallel.deepspeed
    return workers == 1 and (extras.offload_optimizer, extras.offload_parameters) == ("none", "none")


def exchanges_at_once(config: RunConfig, parameters: int, workers: int, device: str) -> bool:
    """Whether gradients are exchanged at once: on CPUs at stages 1 and 2, if a bucket of DeepSpeed's would hold them.

    Stage 2 lets go of gradients bucket by bucket, so it needs no less memory then.
    """
    extras = config.parallel.deepspeed
    return (
        device == "cpu"
        and workers > 1
        and config.parallel.zero_stage in (1, 2)
        and extras.offload_optimizer == "none"
        and parameters <= (extras.reduce_bucket_size or DEFAULT_BUCKET)
    )


def _zero_extras(extras: DeepSpeedConfig) -> dict[str, Any]:
    """The settings that are not null, as entries of DeepSpeed's `zero_optimization`."""
    made = extras.model_dump(exclude={"activation_checkpointing"}, exclude_none=True)
    offloads = {"offload_optimizer": made.pop("offload_optimizer"), "offload_param": made.pop("offload_parameters")}
    return made | {name: {"device": where, "pin_memory": True} for name, where in offloads.items() if where != "none"}
