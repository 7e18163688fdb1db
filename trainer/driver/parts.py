"""The parts of a run, in order: train, package, evaluate, record, register. Parts that are done are skipped."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import files
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.driver.disk import give_back, held
from trainer.driver.hang_watch import HangWatch
from trainer.driver.preemption import CheckpointFirst
from trainer.driver.progress import STARTING_WORKERS, ProgressView
from trainer.errors import ClusterLostError, RunFailedError, last_line
from trainer.run import identity
from trainer.run.journal import Journal, Metrics, NonFinite, Started
from trainer.run.paths import RunPaths
from trainer.run.summary import Evaluated, RunSummary
from trainer.runtime.ray_cluster import connect_ray, resolve_device
from trainer.runtime.stop import POLL_S, Preempted, Stop

if TYPE_CHECKING:
    from trainer.runtime.cluster_watch import ClusterWatch
    from trainer.tracking.tracker import Tracker

TRACKING_DEADLINE_S = 30.0
PREEMPTED_DEADLINE_S = 3.0
WAITING_NOTICE_S = 60.0


@dataclass
class Driver:
    """The parts of a run, in order.

    Attributes:
        reached: step that the run goes on from: that of its checkpoint, or of a package that is evaluated; 0 for none.
        evaluated: training steps of the package, if it is the one that the results are of; 0 without.
        seconds: how long each part took, of those that this process did.
    """

    config: RunConfig
    paths: RunPaths
    dataset: Dataset
    journal: Journal
    view: ProgressView
    stop: Stop
    reached: int
    evaluated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> RunSummary:
        """Run all parts while the tracker uploads in the background; returns the summary.

        Raises:
            RunFailedError: training stopped.
            ClusterLostError: the cluster, or a part of it that the run needs, is gone.
            Preempted: the driver was asked to stop.
        """
        tracker, watch = self.stop.call(self._connect)
        tracker.start()
        watch.start()
        recording = False
        try:
            with self._background_evaluation():
                self._train()
            summary = self.stop.call(self._evaluate)
            recording = True
            summary = self.stop.call(lambda: self._record(tracker, summary))
            if summary.registration.recorded:
                give_back(self.config, self.paths)
            self.view.print_line(f"holds {held(self.paths).describe()} in {self.paths.root}")
            return summary
        except (Preempted, ClusterLostError):
            if not recording:  # what was left behind may still finish it
                self._finish(tracker, "KILLED", PREEMPTED_DEADLINE_S)
            raise
        except Exception as error:
            from trainer.runtime.cluster_watch import is_loss

            if is_loss(error):
                self._finish(tracker, "KILLED", PREEMPTED_DEADLINE_S)
                raise ClusterLostError(last_line(error)) from error
            self._finish(tracker, "FAILED", TRACKING_DEADLINE_S)
            raise
        finally:
            watch.close()

    def _connect(self) -> "tuple[Tracker, ClusterWatch]":
        from trainer.runtime.cluster_watch import ClusterWatch
        from trainer.tracking.tracker import Tracker

        connect_ray()
        return Tracker(self.config, self.paths, self.dataset.info, self.journal), ClusterWatch(self.stop.fail)

    def _finish(self, tracker: "Tracker", status: str, deadline_s: float) -> None:
        """Set the MLflow run's status, unless that takes too long; a request to stop leaves it less time."""
        finishing = threading.Thread(target=tracker.finish, args=(status, deadline_s), daemon=True)
        finishing.start()
        began = time.monotonic()
        while finishing.is_alive() and not self.stop.at_once:
            patience_s = min(deadline_s, PREEMPTED_DEADLINE_S) if self.stop.reason else deadline_s
            if time.monotonic() - began >= patience_s:
                return
            finishing.join(POLL_S)

    @contextmanager
    def _background_evaluation(self) -> Iterator[None]:
        """Evaluate checkpoints while training goes on, if `run.evaluate_every` asks for it."""
        if self.config.run.evaluate_every is None:
            yield
            return
        from trainer.driver.background_evaluation import BackgroundEvaluation

        background = BackgroundEvaluation(self.config, self.paths, self.dataset, self.journal)
        background.start()
        try:
            yield
            self.view.stage("finishing the evaluation of a checkpoint")
            self.stop.call(background.close)
        except (Preempted, ClusterLostError):
            background.abandon()
            raise
        except BaseException:
            background.abandon()
            # the process may go on, with another trial of a sweep
            while background.is_alive() and not self.stop.reason:
                background.join(POLL_S)
            raise

    def _train(self) -> None:
        if self.reached >= self.config.training.steps:
            return
        device = self.stop.call(lambda: resolve_device(self.config))
        low, high = self.config.parallel.min_workers, self.config.parallel.max_workers
        workers = str(high) if low == high else f"{low} to {high}"
        self.view.print_line(
            f"asking Ray for {workers} x {self.config.parallel.cpus_per_worker:g} CPU"
            f"{' + 1 GPU' if device == 'cuda' else ''}"
        )
        self.view.stage(STARTING_WORKERS)
        before, asked = self.journal.size(), time.monotonic()
        reminder = threading.Timer(WAITING_NOTICE_S, self._print_if_waiting, (before,))
        reminder.daemon = True
        reminder.start()
        try:
            checkpoint_first = CheckpointFirst(self.paths, self.journal, self.stop, self.view.print_line)
            hang_watch = HangWatch(self.paths, self.stop.fail)
            hang_watch.start()
            try:
                self.stop.call(lambda: self._fit(device), checkpoint_first)
            finally:
                hang_watch.close()
        except ClusterLostError:
            raise
        except Exception as error:  # whatever Ray raises, the user gets one line and the place of the rest
            raise RunFailedError(
                f"training: {last_line(error)}; the workers' logs are in Ray's session folder"
            ) from error
        finally:
            reminder.cancel()
        records = [record for record, _ in self.journal.read(before)]
        for record in records:
            if isinstance(record, NonFinite):
                raise RunFailedError(f"{record.text}. The last checkpoint is good: {self.paths.checkpoints}")
        if (began := self.view.training_since) is not None:
            self.seconds |= {"startup": began - asked, "training": time.monotonic() - began}

    def _fit(self, device: str) -> None:
        from trainer.driver.ray_train import fit

        fit(self.config, self.paths, self.dataset.folder, device)

    def _print_if_waiting(self, before: int) -> None:
        """Print the cluster's free resources, if no worker has started since the journal was `before` bytes long."""
        import ray

        if not any(True for _ in self.journal.records(Started, before)):
            free = ray.available_resources()
            resources = f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
            self.view.print_line(f"  still waiting for the workers; free in the cluster: {resources}")

    def _evaluate(self) -> RunSummary:
        from trainer.ema.export import package_latest
        from trainer.evaluate.evaluation import Evaluation, evaluate_package

        known = identity.read_summary(self.paths)
        if known and known.step == self.config.training.steps == self.evaluated:
            return known
        step, digest = package_latest(self.config, self.paths, self.dataset.info)
        if step < self.config.training.steps:
            raise RunFailedError(
                f"the newest good checkpoint is of step {step}, not {self.config.training.steps}; run it again"
            )
        if known is not None and (known.step, known.package_sha256) == (step, digest):
            return known
        self.view.print_line(
            f"evaluating step {step}: {self.config.evaluation.samples} samples, "
            f"variational bound on {self.dataset.info.heldout} images"
        )
        self.view.stage("evaluating")
        started = time.monotonic()
        parallel = self.config.parallel
        evaluation = Evaluation(
            package=self.paths.package,
            network=self.config.network.kind,
            data=self.dataset,
            config=self.config.evaluation,
            results=self.paths.results,
            references=Path(self.config.run.storage or "") / "references",
            tasks=parallel.max_workers,
            cpus=parallel.cpus_per_worker,
            device=resolve_device(self.config),
            progress=lambda stage, done, total: self.view.stage(f"evaluating: {stage}", done, total),
            stopped=lambda: self.stop.reason is not None,
        )
        summaries = list[RunSummary]()

        def to_json(evaluated: Evaluated) -> dict[str, Any]:
            self.seconds["evaluation"] = time.monotonic() - started
            summaries.append(self._summary(step, digest, evaluated))
            return summaries[0].to_json()

        evaluate_package(evaluation, self.paths.summary, to_json)
        self.view.print_line(f"evaluated in {self.seconds['evaluation']:.0f} s")
        return summaries[0]

    def _summary(self, step: int, package_sha256: str, evaluated: Evaluated) -> RunSummary:
        return RunSummary(
            name=str(self.config.run.name),
            experiment=self.config.run.experiment,
            step=step,
            package_sha256=package_sha256,
            config_sha256=self.config.config_sha256,
            method_sha256=self.config.method_sha256,
            dataset_fingerprint=self.dataset.info.fingerprint,
            evaluated=evaluated,
            images_per_second=throughput(self.journal),
            utilisation=utilisation(self.journal),
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
        )

    def _record(self, tracker: "Tracker", summary: RunSummary) -> RunSummary:
        """Finish the upload and register the model; if MLflow does not answer, warn: the same command tries again.

        Raises:
            RunFailedError: MLflow refuses it, so that trying again is of no use before something has changed.
        """
        from trainer.registry.models import log_results, log_summary, register
        from trainer.tracking.client import is_outage

        self.view.stage("recording")
        try:
            tracker.drain(TRACKING_DEADLINE_S)
            run_id = str(tracker.run_id)
            log_results(self.config, self.paths, run_id, summary.step)
            registration = register(self.config, self.paths, self.dataset.info, summary, run_id)
            summary = replace(summary, registration=registration)
            files.write_json(self.paths.summary, summary.to_json())
            log_summary(self.config, self.paths, run_id)
        except Exception as error:  # whatever goes wrong there, the run itself is whole
            where = f"MLflow at {self.config.run.tracking_uri}"
            if not is_outage(error):
                raise RunFailedError(
                    f"{where} does not record the run: {last_line(error)}; the results are in {self.paths.results}"
                ) from error
            self.view.print_line(f"warning: {where} did not answer: {last_line(error)}")
            self.view.print_line("  everything is kept here; the same command uploads and registers it later")
            tracker.finish("FINISHED", 0)
            return summary
        tracker.finish("FINISHED", TRACKING_DEADLINE_S)
        summary = replace(summary, registration=replace(registration, recorded=True))
        files.write_json(self.paths.summary, summary.to_json())
        if registration.registered_model and registration.gate:
            self.view.print_line(
                f"registered {registration.registered_model} version {registration.registered_version} "
                f"as {registration.alias}: {registration.gate.reason}"
            )
        return summary


def evaluated_steps(paths: RunPaths) -> int:
    """Training steps of the package, if it is the one that the run's results are of; 0 without."""
    from diffusion.package import PackageError, verify_package

    summary = identity.read_summary(paths)
    try:
        return summary.step if summary and verify_package(paths.package) == summary.package_sha256 else 0
    except PackageError:
        return 0


def throughput(journal: Journal) -> float:
    """Mean training images per second over all logged windows, whatever attempt they belong to; 0 if none is left."""
    rates = [record.values["images_per_second"] for record in journal.records(Metrics)]
    return len(rates) / sum(1 / rate for rate in rates) if rates else 0.0


def utilisation(journal: Journal) -> dict[str, float]:
    """Mean over all logged windows of what says how busy devices and nodes were."""
    found = dict[str, list[float]]()
    for record in journal.records(Metrics):
        for name, value in record.values.items():
            if name in ("mfu", "waited_for_data") or name.startswith("system/"):
                found.setdefault(name, []).append(value)
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}
