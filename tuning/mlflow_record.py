"""The sweep in MLflow: one run that its trials' runs are children of, made while they train.

A thread follows the trials' `tracking.json`, so that a slow or dead server stops nothing; what it could not do is done
at the end, or by the same command another day.
"""

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

from trainer import files
from trainer.config.run_config import canonical
from tuning import report, scores as report_scores
from tuning.space import label
from tuning.sweep import Sweep

POLL_SECONDS = 2.0
RETRY_SECONDS = 10.0
DEADLINE_S = 30.0
GIVE_UP_DEADLINE_S = 5.0


class Recorder(threading.Thread):
    """Makes the sweep's MLflow run and puts the trials' runs below it as they appear.

    Attributes:
        problem: the last failure in one line, None after a success.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Nothing is contacted before `start()`."""
        super().__init__(name="recorder", daemon=True)
        self._sweep = sweep
        self._config = sweep.trials[0].config
        self._adopted: set[str] = set()
        self._parent: str | None = None
        self._lock, self._stop_event = threading.Lock(), threading.Event()
        self.problem: str | None = None

    def run(self) -> None:
        """The thread: adopt what is new, wait, again."""
        while not self._stop_event.is_set():
            self._attempt(self._adopt)
            self._stop_event.wait(RETRY_SECONDS if self.problem else POLL_SECONDS)

    def finish(self) -> bool:
        """Record the table and the heat map; False, with `problem` set, if MLflow does not answer by the deadline."""
        self._stop_event.set()
        recorded: list[bool] = []
        end = threading.Thread(target=lambda: recorded.append(self._attempt(self._record)), daemon=True)
        end.start()
        end.join(DEADLINE_S)
        if not recorded:
            self.problem = f"nothing for {DEADLINE_S:.0f} s"
        return recorded == [True]

    def give_up(self) -> None:
        """Say in MLflow that the sweep failed, if that can be said quickly."""
        self._stop_event.set()
        end = threading.Thread(target=lambda: self._attempt(self._fail), daemon=True)
        end.start()
        end.join(GIVE_UP_DEADLINE_S)

    def _fail(self) -> None:
        from trainer.tracking import sweeps as tracking

        if self._parent is not None:
            tracking.end_run(self._config, self._parent, "FAILED")

    def _attempt(self, work: Callable[[], None]) -> bool:
        from trainer.errors import one_line

        try:
            with self._lock:
                work()
            self.problem = None
        except Exception as error:  # noqa: BLE001 - whatever the server or network does, trials go on
            self.problem = one_line(error)
        return self.problem is None

    def _adopt(self) -> None:
        from trainer.tracking import sweeps as tracking

        if self._parent is None:
            record = self._sweep.record
            key = record.get("parent_key") or uuid.uuid4().hex
            self._sweep.note(parent_key=key)  # by which a sweep that is killed now finds its run again
            self._parent = tracking.sweep_run(
                self._config, self._sweep.name, self._sweep.digest, record.get("parent_run_id"), key
            )
            self._sweep.note(parent_run_id=self._parent)
            tracking.log_sweep(self._config, self._parent, {"sweep.json": _text(self._sweep.record)})
        for _, paths in self._sweep.paths():
            child = files.read_json(paths.tracking).get("run_id") if paths.tracking.is_file() else None
            if child and child not in self._adopted:
                tracking.adopt(self._config, self._parent, child)
                self._adopted.add(child)

    def _record(self) -> None:
        from trainer.tracking import sweeps as tracking

        self._adopted.clear()  # once more, in case a trial got another MLflow run
        self._adopt()
        described = report.report(self._sweep)
        texts = {"sweep.json": _text(self._sweep.record), "report.json": _text(described)}
        failed = any(row["state"] == "failed" for row in described["rows"])
        tracking.log_sweep(self._config, str(self._parent), texts, metrics(described["rows"]), self._sweep.heatmap)
        tracking.end_run(self._config, str(self._parent), "FAILED" if failed else "FINISHED")
        self._sweep.note(recorded=_results_digest(self._sweep))


def recorded(sweep: Sweep) -> bool:
    """Whether MLflow has these results of the sweep."""
    return sweep.record.get("recorded") == _results_digest(sweep)


def metrics(table: list[report_scores.Row]) -> dict[str, float]:
    """The table as MLflow metrics, `vlb_bpd/schedule-linear weighting-vlb`: the part before the slash is a section."""
    named = [(re.sub(r"[^A-Za-z0-9_. -]", "-", label(row["settings"]))[:200], row) for row in table]
    return {
        f"{name}/{text}": row[name] for name in report_scores.METRICS for text, row in named if row[name] is not None
    }


def _results_digest(sweep: Sweep) -> str:
    where = sweep.trials[0].config.run
    results = [where.tracking_uri, where.experiment, report_scores.rows(sweep)]
    return hashlib.sha256(canonical(results).encode()).hexdigest()


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
