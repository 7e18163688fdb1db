"""Elastic training: workers write a checkpoint before Ray Train changes their number.

Ray Train kills the workers and starts as many as the cluster has room for, which go on from the newest checkpoint.
Without a checkpoint of the current step, every change would lose the steps since the last one. After a failure no
worker is left to ask, and training goes on from the last checkpoint.
"""

import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback

from trainer.driver.preemption import GRACE_S
from trainer.run.journal import Journal, Started, Stopped
from trainer.run.paths import RunPaths
from trainer.run.stop_request import clear_stop, request_stop

POLL_SECONDS = 0.2


class CheckpointBeforeResize(ControllerCallback):
    """Callback of Ray Train's controller: workers write a checkpoint before their number changes."""

    def __init__(self, paths: RunPaths, attempt: str, grace_s: float = GRACE_S) -> None:
        """Watch the workers of `attempt`, which get `grace_s` seconds for their checkpoint."""
        self._paths, self._attempt, self._grace_s = paths, attempt, grace_s
        self._began = Journal(paths.journal).size()
        self._failed = False

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:  # noqa: ANN401, ARG002 - Ray's
        """Remember that a worker has failed."""
        self._failed = True

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:  # noqa: ANN401 - Ray's
        """Ask workers that are training to write a checkpoint and stop; without any, return at once."""
        journal = Journal(self._paths.journal)
        at_work = not self._failed and _has(journal, Started, self._began)
        self._began, self._failed = journal.size(), False
        if not at_work:
            return
        reason = f"going on with {resize_decision.num_workers} workers"
        request_stop(self._paths.preempt, self._attempt, reason)
        deadline = time.monotonic() + self._grace_s
        while not _has(journal, Stopped, self._began) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        clear_stop(self._paths.preempt, reason)


def _has(journal: Journal, kind: type[Started | Stopped], since: int) -> bool:
    return any(True for _ in journal.records(kind, since))
