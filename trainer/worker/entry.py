"""Entry point of a training worker: imports, then the training loop."""

from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import get_device

from trainer.config.run_config import RunConfig
from trainer.run.paths import RunPaths
from trainer.runtime.fast_import import import_stack
from trainer.worker.deepspeed_config import batch_shape, is_alone

MODULES = ("trainer.worker.loop", "deepspeed")
ALONE = MODULES[:1]


def train_worker(payload: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker; validates the configuration again."""
    config = RunConfig.model_validate_json(payload["config"])
    alone = is_alone(config, ray.train.get_context().get_world_size())
    import_stack(ALONE if alone else MODULES, config.network.kind, get_device().type)
    import torch

    from trainer.worker.loop import run
    from trainer.worker.step import WorkerContext

    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    paths, dataset = RunPaths(Path(payload["root"])), Path(payload["dataset"])
    context = WorkerContext(config, paths, dataset, get_device(), payload["attempt"])
    try:
        run(context, ray.train.report)
    except torch.OutOfMemoryError as error:
        raise MemoryError(out_of_memory(config, error)) from error


def out_of_memory(config: RunConfig, error: Exception) -> str:
    """What went wrong on a GPU that is too small, and what to lower, in one line."""
    parallel, shape = config.parallel, batch_shape(config, ray.train.get_context().get_world_size())
    advice = [f"a parallel.micro_batch_size below {shape.micro_rows}"] if shape.micro_rows > 1 else []
    if config.network.kind != "mlp" and not parallel.deepspeed.activation_checkpointing:
        advice.append("parallel.deepspeed.activation_checkpointing = true")
    if parallel.zero_stage < 3:
        advice.append("more workers at a higher parallel.zero_stage")
    if parallel.zero_stage and parallel.deepspeed.offload_optimizer == "none":
        advice.append("parallel.deepspeed.offload_optimizer = cpu")
    return f"the GPU's memory is full: {str(error).split('. ')[0]}; what needs less: {', '.join(advice)}"
