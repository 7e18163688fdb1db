"""Where a training worker begins: its imports, then the loop."""

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
    """What each worker runs; the configuration is validated again where it is used."""
    config = RunConfig.model_validate_json(payload["config"])
    import_stack(MODULES, config.network.kind, get_device().type)
    import torch

    from trainer.worker.loop import run
    from trainer.worker.step import Place

    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    place = Place(config, RunPaths(Path(payload["root"])), Path(payload["dataset"]), get_device(), payload["attempt"])
    run(place, ray.train.report)
