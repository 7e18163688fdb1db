"""Evaluation while training goes on: finished checkpoints are evaluated with their EMA weights, on free resources.

A thread of the driver looks for checkpoints at multiples of `run.evaluate_every`, the newest first. Tasks use the
cluster's free GPUs or CPUs; if there are none, one task at a time shares the CPUs of the training workers. Results go
to the journal, like training metrics.
"""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

from trainer.checkpoint.reader import Checkpoint
from trainer.config.evaluation import EvaluationConfig
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.ema.export import package_checkpoint
from trainer.errors import last_line
from trainer.run.journal import CheckpointEvaluated, Journal, Warned
from trainer.run.manifest import CheckpointError, complete_steps, step_folder
from trainer.run.paths import RunPaths

POLL_SECONDS = 1.0
EXPENSIVE_METRICS = ("nll", "denoising")  # measured at the end of the run only


class BackgroundEvaluation(threading.Thread):
    """Evaluates a run's checkpoints until it is closed."""

    def __init__(self, config: RunConfig, paths: RunPaths, dataset: Dataset, journal: Journal) -> None:
        """Prepare the thread; nothing happens before `start()`."""
        super().__init__(name="evaluation", daemon=True)
        self._config, self._paths, self._dataset, self._journal = config, paths, dataset, journal
        self._given_up = set[int]()
        self._closing, self._abandoned = threading.Event(), threading.Event()

    def run(self) -> None:
        """The thread: evaluate the newest checkpoint that has not been evaluated, repeatedly."""
        while not self._closing.is_set():
            step = self._next()
            if step is None:
                self._closing.wait(POLL_SECONDS)
                continue
            try:
                self._evaluate(step)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong here, training goes on
                if self._abandoned.is_set():
                    return
                self._given_up.add(step)
                self._journal.append(Warned(step=step, text=f"no evaluation of step {step}: {last_line(error)}"))

    def close(self) -> None:
        """Start no further evaluation, and wait for the current one."""
        self._closing.set()
        if self.is_alive():
            self.join()

    def abandon(self) -> None:
        """Abort the current evaluation and start no other; the thread then ends."""
        self._abandoned.set()
        self._closing.set()

    def _next(self) -> int | None:
        every = self._config.run.evaluate_every
        assert every is not None, "without it, nothing is evaluated beside training"
        steps = [
            step
            for step in complete_steps(self._paths.checkpoints)
            if step % every == 0
            and step < self._config.training.steps  # the last one is evaluated in full
            and step not in self._given_up
            and not (self._paths.evaluation(step) / "evaluation.json").is_file()
        ]
        return max(steps, default=None)

    def _evaluate(self, step: int) -> None:
        import ray

        from trainer.evaluate.evaluation import Evaluation, evaluate_package

        folder = self._paths.evaluation(step)
        package = folder / "package"
        try:
            checkpoint = Checkpoint(step_folder(self._paths.checkpoints, step))
            checkpoint.verify()
            digest = package_checkpoint(self._config, self._paths, self._dataset.info, checkpoint, package)
        except (CheckpointError, OSError) as error:
            raise RuntimeError(f"its checkpoint cannot be read: {error}") from None
        parallel, available = self._config.parallel, ray.available_resources()
        gpus = int(available.get("GPU", 0))
        free = int(available.get("CPU", 0) // parallel.cpus_per_worker)
        evaluation = Evaluation(
            package=package,
            network=self._config.network.kind,
            data=self._dataset,
            config=intermediate_config(self._config.evaluation),
            results=folder,
            references=Path(self._config.run.storage or "") / "references",
            tasks=max(1, min(gpus or free, parallel.max_workers)),
            device="cuda" if gpus else "cpu",
            cpus=parallel.cpus_per_worker if free else 0.0,
            background=True,
            stopped=self._abandoned.is_set,
        )
        evaluated = evaluate_package(
            evaluation,
            folder / "evaluation.json",
            lambda results: {"step": step, "package_sha256": digest, **results.to_json()},
            with_report=False,
        )
        picture = str(folder / "samples.png") if evaluated.samples is not None else None
        self._journal.append(CheckpointEvaluated(step=step, scores=evaluated.numbers(), samples_png=picture))
        shutil.rmtree(package)


def intermediate_config(config: EvaluationConfig) -> EvaluationConfig:
    """The evaluation settings during training: without expensive metrics, one set of samples, no curve over NFE."""
    metrics = [name for name in config.metrics if name not in EXPENSIVE_METRICS] or ["vlb"]
    values: dict[str, Any] = config.model_dump(mode="json") | {"metrics": metrics, "seeds": 1, "nfe_curve": []}
    return EvaluationConfig.model_validate_json(json.dumps(values))
