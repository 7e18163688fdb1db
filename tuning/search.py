"""Ray Tune runs the trials that are not done; each is a whole run of the trainer.

Tune decides when a trial starts, and nothing else: what a trial has reached is in its run's folder, so Tune's own files
are thrown away. Tune keeps a trial in a placement group, which its tasks could not leave: the run is therefore a task
of its own outside the group, and the group holds one byte of memory (Tune takes no empty one), so that a cluster with
just enough CPUs for the workers is enough.
"""

import logging
import os
import shutil
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from trainer.config.run_config import RunConfig as TrainerConfig
from trainer.driver import run as driver
from trainer.errors import InputError, RunFailedError, last_line
from trainer.runtime.ray_cluster import connect_ray
from tuning.progress import Story
from tuning.scores import FRECHET, VLB, VLB_SE
from tuning.space import Trial
from tuning.sweep import Sweep

RESOURCES = {"CPU": 0.0, "memory": 1.0}
LOCK_PATIENCE_S = 60.0
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the story is told here
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once; the same command goes on
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def search(sweep: Sweep, pending: list[Trial], story: Story) -> None:
    """Run the pending trials in order; one that fails is noted and stops no other."""
    os.environ |= SETTINGS
    connect_ray()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(sweep.tune, ignore_errors=True)
    configs = {trial.name: trial.config.canonical_json() for trial in pending}
    trainable = tune.with_resources(tune.with_parameters(run_trial, configs=configs), RESOURCES)
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
            callbacks=[Listener(sweep, story)],
            failure_config=FailureConfig(max_failures=0),
            verbose=0,
        ),
    ).fit()
    shutil.rmtree(sweep.tune, ignore_errors=True)


def run_trial(setting: dict[str, Any], configs: dict[str, str]) -> None:
    """What Tune starts: a run to its end. A failure is a result too, so that the process serves the next trial."""
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(complete_trial)
    try:
        tune.report(ray.get(task.remote(configs[setting["name"]])))
    except Exception as error:  # noqa: BLE001 - whatever Ray raises, the other trials go on
        tune.report({"reason": last_line(error)})


def complete_trial(text: str) -> dict[str, Any]:
    """Bring a run to its end: its scores, or the reason why there are none."""
    config = TrainerConfig.model_validate_json(text)
    try:
        # a predecessor that was killed may take a moment to let go of the run
        summary = driver.complete(config, LOCK_PATIENCE_S)
    except (RunFailedError, InputError) as error:
        return {"reason": str(error)}
    numbers = summary.evaluated.numbers()
    scores = {name: numbers[name] for name in (VLB, VLB_SE, FRECHET) if name in numbers}
    return {**scores, "recorded": summary.registration.recorded}


class Listener(Callback):
    """Tells the story, and keeps why trials failed."""

    def __init__(self, sweep: Sweep, story: Story) -> None:
        self._sweep, self._story = sweep, story
        self._trials = {trial.name: trial for trial in sweep.trials}

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune writes its callbacks down for a restart of its own, which is not used here."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial starts."""
        started = self._trials[trial.config["name"]]
        self._sweep.note_failure(started.name, None)
        self._story.begin(started)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial returned, with scores or a reason."""
        self._end(trial, dict(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002, ANN401
        """A trial's process was lost."""
        self._end(trial, {"reason": "its process ended; the node may be gone or out of memory"})

    def _end(self, trial: TuneTrial, result: dict[str, Any]) -> None:
        ended = self._trials[trial.config["name"]]
        if "reason" in result:
            self._sweep.note_failure(ended.name, result["reason"])
        self._story.end(ended, result)


def _name(trial: TuneTrial) -> str:
    return trial.config["name"]
