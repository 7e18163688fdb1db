"""Where a training worker begins: its imports, then the loop."""

import gc
import os
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import get_device

from trainer.config.run_config import RunConfig
from trainer.run.paths import RunPaths
from trainer.runtime.fast_import import NOT_NEEDED, quick_imports


def train_worker(payload: dict[str, Any]) -> None:
    """What each worker runs; the configuration is validated again where it is used."""
    config = RunConfig.model_validate_json(payload["config"])
    import_stack(config.network.kind, get_device().type)
    import torch

    from trainer.worker.loop import run
    from trainer.worker.step import Place

    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    place = Place(config, RunPaths(Path(payload["root"])), Path(payload["dataset"]), get_device(), payload["attempt"])
    run(place, ray.train.report)


def import_stack(network: str, device: str) -> None:
    """Import all that a training worker or an evaluation task will want for this kind of network."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    with quick_imports(*NOT_NEEDED):
        import trainer.worker.loop  # noqa: F401

        if network == "unet":
            import diffusers.models.unets.unet_2d
        elif network == "dit":
            import diffusers.models.transformers.dit_transformer_2d  # noqa: F401
        import deepspeed  # noqa: F401
    if not gc.get_freeze_count():
        gc.freeze()  # what was just imported stays: the collector need not look at it again
