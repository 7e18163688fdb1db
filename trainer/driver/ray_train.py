"""Runs the training loop under Ray Train: asks the cluster for a gang of workers, each of which runs the loop.

The loop writes its own checkpoints; Ray Train's storage holds only its bookkeeping, one folder per attempt, so a
restarted driver is not affected by the state of an earlier one.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from ray.train import ControllerError, FailureConfig, RunConfig as RayRunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from trainer.config.run_config import RunConfig
from trainer.driver.cleaner import EndingCleanerCallback
from trainer.driver.elastic import CheckpointBeforeResize
from trainer.driver.placement import worker_selectors
from trainer.driver.plan import bundles
from trainer.errors import last_line
from trainer.run.attempt import begin_attempt
from trainer.run.journal import Journal, Warned
from trainer.run.manifest import newest_whole
from trainer.run.paths import RunPaths
from trainer.runtime.nic import NodeTorchConfig
from trainer.worker.entry import train_worker

MAX_FAILURES = 3
RESIZE_INTERVAL_S = 30.0
PROCESS_GROUP_TIMEOUT_S = 600  # of a rank, after which the others take it for lost


class Trainer(TorchTrainer):
    """A TorchTrainer that leaves no cleaner of placement groups behind, and needs no process for Ray's data sets."""

    def _create_default_callbacks(self) -> list[Any]:
        """Ray's callbacks, with another cleaner, and without the data sets of which there are none."""
        return [
            EndingCleanerCallback() if isinstance(callback, PlacementGroupCleanerCallback) else callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, DatasetsCallback)
        ]


def fit(config: RunConfig, paths: RunPaths, dataset_folder: Path, device: str) -> None:
    """Train until `training.steps` or a non-finite loss (the journal says which).

    A lost worker or node restarts the gang: up to MAX_FAILURES times in a row without a newer checkpoint, without limit
    as long as there is a newer one, so that a long run can outlive many machines.

    Raises:
        ray.train.TrainingFailedError: restarts made no progress.
    """
    failures_without_progress = 0
    while True:
        reached = newest_whole(paths.checkpoints)
        try:
            _attempt(config, paths, dataset_folder, device)
            return
        except TrainingFailedError as error:
            failures_without_progress = (
                0 if newest_whole(paths.checkpoints) > reached else failures_without_progress + 1
            )
            # Ray Train has tried again where a worker failed, and not where its controller did, as it does with a node
            if failures_without_progress > (MAX_FAILURES if isinstance(error, ControllerError) else 0):
                raise
            cause = last_line(error)
            Journal(paths.journal).append(Warned(text=f"training goes on from its checkpoint after: {cause}"))


def _attempt(config: RunConfig, paths: RunPaths, dataset_folder: Path, device: str) -> None:
    """Run one Trainer, which restarts the gang up to MAX_FAILURES times."""
    attempt = f"attempt-{time.time_ns()}"
    begin_attempt(paths.attempt, attempt)
    payload = {
        "config": config.canonical_json(),
        "root": str(paths.root),
        "dataset": str(dataset_folder),
        "attempt": attempt,
    }
    elastic = not isinstance(config.parallel.workers, int)
    callbacks: Any = (
        [CheckpointBeforeResize(paths, attempt)] if elastic else None
    )  # of the controller, which Ray's types leave out
    Trainer(
        train_worker,
        train_loop_config=payload,
        torch_config=NodeTorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=config.parallel.workers,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
            use_gpu=device == "cuda",
            resources_per_worker=bundles(config, device)[0],
            label_selector=worker_selectors(config.parallel.workers),
        ),
        run_config=RayRunConfig(
            name=attempt,
            storage_path=str(paths.ray),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=callbacks,
        ),
    ).fit()
    shutil.rmtree(paths.ray, ignore_errors=True)
