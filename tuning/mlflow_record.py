"""The sweep in MLflow: a parent run, to which the runs of the trials are attached while they train.

A thread polls the trials' `tracking.json`, so that a slow or unreachable server delays nothing. What it could not
record is recorded at the end, or when the same command runs again.
"""

import hashlib
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

from diffusion.json_text import json_text
from trainer import files
from trainer.config.run_config import canonical
from trainer.run.identity import read_summary
from trainer.run.paths import RunPaths
from tuning import report, scores as report_scores
from tuning.space import label
from tuning.sweep import Sweep

POLL_INTERVAL_S = 2.0
RETRY_INTERVAL_S = 10.0
FINISH_DEADLINE_S = 30.0
GIVE_UP_DEADLINE_S = 5.0


class Recorder(threading.Thread):
    """Creates the sweep's MLflow run, and attaches the trials' runs to it as they appear.

    Attributes:
        problem: the last failure in one line; None after a success.
    """

    def __init__(self, sweep: Sweep) -> None:
        """No server is contacted before `start()`."""
        super().__init__(name="recorder", daemon=True)
        self._sweep = sweep
        self._config = sweep.trials[0].config
        self._attached: set[str] = set()
        self._parent: str | None = None
        self._lock, self._stop_event = threading.Lock(), threading.Event()
        self.problem: str | None = None

    def run(self) -> None:
        """Body of the thread: attach new runs at intervals until stopped."""
        while not self._stop_event.is_set():
            self._attempt(self._attach_trials)
            self._stop_event.wait(RETRY_INTERVAL_S if self.problem else POLL_INTERVAL_S)

    def finish(self) -> bool:
        """Record the table and the heat map; False, with `problem` set, if MLflow does not respond by the deadline."""
        self._stop_event.set()
        outcomes: list[bool] = []
        end = threading.Thread(target=lambda: outcomes.append(self._attempt(self._record)), daemon=True)
        end.start()
        end.join(FINISH_DEADLINE_S)
        if not outcomes:
            self.problem = f"no response for {FINISH_DEADLINE_S:.0f} s"
        return outcomes == [True]

    def give_up(self) -> None:
        """Mark the sweep as failed in MLflow, unless that takes longer than GIVE_UP_DEADLINE_S."""
        self._stop_event.set()
        end = threading.Thread(target=lambda: self._attempt(self._fail), daemon=True)
        end.start()
        end.join(GIVE_UP_DEADLINE_S)

    def _fail(self) -> None:
        from trainer.tracking import sweeps as tracking

        if self._parent is not None:
            tracking.end_run(self._config, self._parent, "FAILED")

    def _attempt(self, action: Callable[[], None]) -> bool:
        from trainer.errors import one_line

        try:
            with self._lock:
                action()
            self.problem = None
        except Exception as error:  # noqa: BLE001 - whatever the server or network does, trials go on
            self.problem = one_line(error)
        return self.problem is None

    def _attach_trials(self) -> None:
        from trainer.tracking import sweeps as tracking

        if self._parent is None:
            record = self._sweep.record
            key = record.get("parent_key") or uuid.uuid4().hex
            self._sweep.update_record(parent_key=key)  # a sweep that is killed now finds its run again by this key
            self._parent = tracking.sweep_run(
                self._config, self._sweep.name, self._sweep.digest, record.get("parent_run_id"), key
            )
            self._sweep.update_record(parent_run_id=self._parent)
            tracking.log_sweep(self._config, self._parent, {"sweep.json": _text(self._sweep.record)})
        for _, paths in self._sweep.paths():
            child = _mlflow_run(paths)
            if child and child not in self._attached:
                tracking.adopt(self._config, self._parent, child)
                self._attached.add(child)

    def _record(self) -> None:
        from trainer.tracking import sweeps as tracking

        self._attached.clear()  # attach all again, in case a trial has a new MLflow run
        self._attach_trials()
        described = report.report(self._sweep)
        texts = {"sweep.json": _text(self._sweep.record), "report.json": _text(described)}
        failed = any(row["state"] == "failed" for row in described["rows"])
        tracking.log_sweep(self._config, str(self._parent), texts, metrics(described["rows"]), self._sweep.heatmap)
        tracking.end_run(self._config, str(self._parent), "FAILED" if failed else "FINISHED")
        self._sweep.update_record(recorded=_results_digest(self._sweep))


def _mlflow_run(paths: RunPaths) -> str | None:
    """Id of a trial's MLflow run; None while it has none."""
    try:
        return files.read_json(paths.tracking).get("run_id")
    except (OSError, ValueError, AttributeError):
        summary = read_summary(paths)
        return summary.registration.run_id if summary else None


def is_recorded(sweep: Sweep) -> bool:
    """Whether MLflow has the current results of the sweep."""
    return sweep.record.get("recorded") == _results_digest(sweep)


def metrics(table: list[report_scores.Row]) -> dict[str, float]:
    """The table as MLflow metrics such as `vlb_bpd/schedule-linear weighting-vlb`; MLflow groups them by the prefix."""
    named = [(re.sub(r"[^A-Za-z0-9_. -]", "-", label(row["settings"]))[:200], row) for row in table]
    return {
        f"{name}/{text}": row[name] for name in report_scores.METRICS for text, row in named if row[name] is not None
    }


def _results_digest(sweep: Sweep) -> str:
    where = sweep.trials[0].config.run
    results = [where.tracking_uri, where.experiment, report_scores.rows(sweep)]
    return hashlib.sha256(canonical(results).encode()).hexdigest()


def _text(values: dict[str, Any]) -> str:
    return json_text(values, indent=2) + "\n"
