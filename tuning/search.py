"""Runs the trials that are not done with Ray Tune; each is a complete run of the trainer.

Tune only decides when a trial starts. The state of a trial is in its run's folder, so Tune's own files are deleted.
Tune places a trial in a placement group, and its tasks with it. The run is therefore a task outside the group, and the
group reserves one byte of memory (Tune refuses an empty one), so that the cluster needs CPUs for the workers alone.
"""

import logging
import os
import shutil
import threading
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from trainer.checkpoint.damaged import NoGoodCheckpointError
from trainer.config.run_config import RunConfig as TrainerConfig
from trainer.driver import run as driver
from trainer.errors import HungError, InputError, RunFailedError, last_line
from trainer.runtime.ray_cluster import connect_ray
from tuning.progress import SweepProgress
from tuning.scores import FRECHET, VLB, VLB_SE
from tuning.space import Trial
from tuning.sweep import Sweep

RESOURCES = {"CPU": 0.0, "memory": 1.0}
LOCK_TIMEOUT_S = 60.0
ANSWER_S = 0.5  # for an answer to arrive before its process ends
RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # SweepProgress prints instead
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once; the same command resumes it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def search(sweep: Sweep, pending: list[Trial], progress: SweepProgress, from_scratch: bool = False) -> None:
    """Run the pending trials in order; a failure is recorded, and the other trials continue.

    Args:
        sweep: the sweep.
        pending: its trials that are not done.
        progress: shows them.
        from_scratch: whether trials of which there are damaged checkpoints only begin at step 0.
    """
    os.environ |= RAY_ENVIRONMENT
    connect_ray(dashboard=True)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(sweep.tune, ignore_errors=True)
    configs = {trial.name: trial.config.canonical_json() for trial in pending}
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, configs=configs, from_scratch=from_scratch), RESOURCES
    )
    Tuner(
        trainable,
        param_space={"name": tune.grid_search(list(configs))},
        tune_config=TuneConfig(
            max_concurrent_trials=sweep.concurrent_trials,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=RunConfig(
            name="trials",
            storage_path=str(sweep.tune),
            callbacks=[Listener(sweep, progress)],
            failure_config=FailureConfig(max_failures=0),
            verbose=0,
        ),
    ).fit()
    shutil.rmtree(sweep.tune, ignore_errors=True)


def run_trial(setting: dict[str, Any], configs: dict[str, str], from_scratch: bool) -> None:
    """Tune's trainable: a run to its end. A failure is returned as a result, so that Tune reuses the process."""
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(complete_trial)
    try:
        tune.report(ray.get(task.remote(configs[setting["name"]], from_scratch)))
    except Exception as error:  # noqa: BLE001 - whatever Ray raises, the other trials continue
        tune.report({"reason": last_line(error)})


def complete_trial(text: str, from_scratch: bool) -> dict[str, Any]:
    """Run a trial, given as JSON, to its end: its scores, or `reason` if it failed."""
    config = TrainerConfig.model_validate_json(text)
    try:
        # a killed predecessor may take a moment to release the run's lock
        try:
            summary = driver.complete(config, LOCK_TIMEOUT_S)
        except NoGoodCheckpointError:
            if not from_scratch:
                raise
            summary = driver.complete(config, LOCK_TIMEOUT_S, from_scratch=True)
    except HungError as error:
        # the ranks, which wait for each other, belong to this process and end with it, once it has answered
        threading.Timer(ANSWER_S, os._exit, [1]).start()
        return {"reason": str(error)}
    except (RunFailedError, InputError) as error:
        return {"reason": str(error)}
    numbers = summary.evaluated.numbers()
    scores = {name: numbers[name] for name in (VLB, VLB_SE, FRECHET) if name in numbers}
    return {**scores, "recorded": summary.registration.recorded}


class Listener(Callback):
    """Prints the progress of trials, and records why they failed."""

    def __init__(self, sweep: Sweep, progress: SweepProgress) -> None:
        self._sweep, self._progress = sweep, progress
        self._trials = {trial.name: trial for trial in sweep.trials}

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune pickles its callbacks to restart an experiment, which is not used here."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial starts."""
        started = self._trials[trial.config["name"]]
        self._sweep.record_failure(started.name, None)
        self._progress.begin(started)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial returned, with scores or a reason."""
        self._end(trial, dict(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial's process died."""
        self._end(trial, {"reason": "its process died; the node may be lost or out of memory"})

    def _end(self, trial: TuneTrial, result: dict[str, Any]) -> None:
        ended = self._trials[trial.config["name"]]
        if "reason" in result:
            self._sweep.record_failure(ended.name, result["reason"])
        self._progress.end(ended, result)


def _name(trial: TuneTrial) -> str:
    return trial.config["name"]
