"""How a run maps onto DeepSpeed: micro-batches per rank, and DeepSpeed's configuration. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from trainer.config.parallel import DeepSpeedConfig
from trainer.config.run_config import RunConfig


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


def deepspeed_config(config: RunConfig, workers: int) -> dict[str, Any]:
    """The whole configuration for `deepspeed.initialize`."""
    shape, extras = batch_shape(config, workers), config.parallel.deepspeed
    return {
        "train_micro_batch_size_per_gpu": shape.micro_rows,
        "gradient_accumulation_steps": shape.micro_batches,
        "gradient_clipping": config.optim.max_grad_norm,
        "zero_optimization": {"stage": config.parallel.zero_stage, **_zero_extras(extras)},
        "zero_allow_untested_optimizer": True,  # the optimizer is torch's fused AdamW, built here
        # also where its state is in the host's memory
        **({"zero_force_ds_cpu_optimizer": False} if extras.offload_optimizer == "cpu" else {}),
        "torch_autocast": {"enabled": config.training.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }


def _zero_extras(extras: DeepSpeedConfig) -> dict[str, Any]:
    """The settings that are not null, as entries of DeepSpeed's `zero_optimization`."""
    made = extras.model_dump(exclude={"activation_checkpointing"}, exclude_none=True)
    offloads = {"offload_optimizer": made.pop("offload_optimizer"), "offload_param": made.pop("offload_parameters")}
    return made | {name: {"device": where, "pin_memory": True} for name, where in offloads.items() if where != "none"}
