"""MLflow, fed from the journal by a thread of the driver: a slow or dead tracking server never stops a step.

The journal is the queue of uploads. `tracking.json` names the MLflow run and how far the journal has been uploaded, so
that nothing is lost or duplicated when the driver is killed or the server comes back later: each record has its own
time stamp, and MLflow keeps one metric per (name, time, step, value).
"""

import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import files
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import one_line
from trainer.run.journal import CheckpointEvaluated, Journal, Metrics, Warned
from trainer.run.paths import RunPaths
from trainer.tracking.client import is_outage, mlflow_client, run_exists
from trainer.tracking.runs import METRICS_PER_BATCH, create_run, describe_run, evaluation_metrics, log_grid

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0
MAX_REFUSALS = 2


class Tracker(threading.Thread):
    """Uploads a run's journal for as long as it grows.

    Attributes:
        run_id: the MLflow run, once the server has answered.
        error: the last failure; None after a success.
    """

    def __init__(self, config: RunConfig, paths: RunPaths, dataset: DatasetInfo, journal: Journal) -> None:
        """Go on from `tracking.json` where there is one; nothing is contacted before `start()`."""
        super().__init__(name="tracker", daemon=True)
        self._config, self._paths, self._dataset, self._journal = config, paths, dataset, journal
        saved = self._saved()
        self.run_id: str | None = saved.get("run_id")
        self._key: str = saved.get("key") or uuid.uuid4().hex
        self._described: bool = saved.get("described", False)
        offset: int = saved.get("offset", 0)
        self._offset = offset if offset <= journal.size() else 0  # a journal that was cut is read again from its start
        self._step: int = saved.get("step", 0)
        self.error: Exception | None = None
        self._refusals = 0  # in a row
        self._client: MlflowClient | None = None
        self._stop_event, self._round = threading.Event(), threading.Condition()
        self._answered = False

    def _saved(self) -> dict[str, Any]:
        """What `tracking.json` holds; if it cannot be read, the run is recorded anew from the journal."""
        if not self._paths.tracking.is_file():
            return {}
        try:
            saved: object = files.read_json(self._paths.tracking)
        except (OSError, ValueError):
            saved = None
        if files.is_mapping(saved):
            return saved
        text = f"{self._paths.tracking} is damaged; the run is recorded in MLflow anew, from its journal"
        self._journal.append(Warned(text=text))
        return {}

    def run(self) -> None:
        """The thread: upload new records, wait, repeat; failures are kept in `error` and retried."""
        while not self._stop_event.is_set():
            try:
                self._upload(self._connect())
                self.error, self._refusals = None, 0
                with self._round:
                    self._answered = True
                    self._round.notify_all()
            except Exception as error:  # noqa: BLE001 - whatever the server or network does, training goes on
                self._keep(error)
            self._stop_event.wait(RETRY_SECONDS if self.error else POLL_SECONDS)

    def _keep(self, error: Exception) -> None:
        """Keep an error. One that is no outage may be a deleted run, which is looked for again: the second is told."""
        self.error = error
        self._refusals = 0 if is_outage(error) else self._refusals + 1
        if self._refusals:
            self._client = None
        if self._refusals == MAX_REFUSALS:
            self._journal.append(Warned(text=f"MLflow does not record this run: {one_line(error)}"))
        with self._round:
            self._round.notify_all()

    def drain(self, deadline_s: float) -> None:
        """Wait until the journal's current records are uploaded.

        Raises:
            Exception: MLflow's answer, where it refuses them, or the last failure after `deadline_s` seconds.
        """
        target = max((offset for _, offset in self._journal.read()), default=0)
        with self._round:
            self._round.wait_for(lambda: self._uploaded(target) or self._refused(), deadline_s)
        if not self._uploaded(target):
            raise self.error or TimeoutError(f"nothing for {deadline_s:.0f} s")

    def _uploaded(self, target: int) -> bool:
        return self._answered and self._offset >= target

    def _refused(self) -> bool:
        return self._refusals >= MAX_REFUSALS

    def finish(self, status: str, deadline_s: float) -> None:
        """Upload the remaining records, set the MLflow run's status (FINISHED, FAILED or KILLED) and stop the thread.

        Takes at most `deadline_s` seconds.
        """
        try:
            if deadline_s:
                self.drain(deadline_s)
                self._connect().set_terminated(str(self.run_id), status)
        except Exception as error:  # noqa: BLE001 - a server that goes away now takes nothing from the run
            self.error = error
        self._stop_event.set()

    def _connect(self) -> "MlflowClient":
        if self._client is not None:
            return self._client
        client = mlflow_client(str(self._config.run.tracking_uri))
        if self.run_id is None or not run_exists(client, self.run_id):
            self.run_id, self._described, self._offset, self._step = None, False, 0, 0
            self._save()  # the key, by which a driver that is killed now finds the run again
            self.run_id = create_run(client, self._config, self._dataset, self._key)
            self._save()  # before anything else can fail, so that a retry fills this run and makes no other
        else:
            client.set_terminated(self.run_id, "RUNNING")
        if not self._described:
            describe_run(client, self.run_id, self._config, self._dataset)
            self._described = True
            self._save()
        self._client = client
        return client

    def _upload(self, client: "MlflowClient") -> None:
        """Upload the records behind the offset, in batches; the offset is saved once they are uploaded."""
        pending: list[Metrics] = []
        evaluated: list[CheckpointEvaluated] = []
        reached, step = self._offset, self._step
        for record, offset in self._journal.read(self._offset):
            if isinstance(record, Metrics) and record.step > step:
                pending.append(record)
                step = record.step
            elif isinstance(record, CheckpointEvaluated):
                evaluated.append(record)
            reached = offset
        rows = [(name, record) for record in pending for name in record.values]
        for first in range(0, len(rows), METRICS_PER_BATCH):
            self._log(client, rows[first : first + METRICS_PER_BATCH])
        for record in evaluated:
            self._log_checkpoint(client, record)
        self._offset, self._step = reached, step
        if pending or evaluated:
            self._save()

    def _log(self, client: "MlflowClient", rows: list[tuple[str, Metrics]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, record.values[name], record.time_ms, record.step) for name, record in rows]
        client.log_batch(str(self.run_id), metrics=metrics)

    def _log_checkpoint(self, client: "MlflowClient", record: CheckpointEvaluated) -> None:
        """The scores of a checkpoint that was evaluated beside training, at its step, and its grid of samples."""
        metrics = evaluation_metrics(
            record.scores, self._dataset, record.step, str(self.run_id), time_ms=record.time_ms
        )
        client.log_batch(str(self.run_id), metrics=metrics)
        if record.samples_png is not None:
            log_grid(client, str(self.run_id), Path(record.samples_png), record.step, record.time_ms)

    def _save(self) -> None:
        progress = {"described": self._described, "offset": self._offset, "step": self._step}
        files.write_json(self._paths.tracking, {"key": self._key, "run_id": self.run_id, **progress})
