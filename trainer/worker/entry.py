"""Entry point of a training worker: imports, then the training loop."""

from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import get_device

from trainer.config.run_config import RunConfig
from trainer.run.paths import RunPaths
from trainer.runtime.fast_import import import_stack

MODULES = ("trainer.worker.loop", "deepspeed")


def train_worker(payload: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker; validates the configuration again."""
    config = RunConfig.model_validate_json(payload["config"])
    import_stack(MODULES, config.network.kind, get_device().type)
    import torch

    from trainer.worker.loop import run
    from trainer.worker.step import WorkerContext

    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    paths, dataset = RunPaths(Path(payload["root"])), Path(payload["dataset"])
    context = WorkerContext(config, paths, dataset, get_device(), payload["attempt"])
    run(context, ray.train.report)
