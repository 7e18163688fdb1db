"""What happens to workers when the driver is asked to stop: those that train write a checkpoint first.

At any other time there is nothing to save, and training is left: at once while it waits for room or its first workers
start, and after a few seconds if they were lost. Rank 0 acknowledges a request, which is how the driver tells the two
apart.
"""

import time
from collections.abc import Callable

from trainer.run.journal import Acknowledged, Journal, Started, Stopped
from trainer.run.paths import RunPaths
from trainer.run.stop_request import request_stop
from trainer.runtime.stop import Stop

ACKNOWLEDGE_S = 4.0
GRACE_S = 60.0
SHUTDOWN_S = 3.0


class CheckpointFirst:
    """Tells when training may be left: `Stop.call(fit, CheckpointFirst(…))`."""

    def __init__(
        self,
        paths: RunPaths,
        journal: Journal,
        stop: Stop,
        print_line: Callable[[str], None] = lambda _: None,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Before training begins.

        Args:
            paths: the run's files.
            journal: the run's journal; the workers' records follow its current end.
            stop: the requests to the driver.
            print_line: called once, with what is being waited for.
            grace_s: seconds that workers which have acknowledged the request get for their checkpoint.
            clock: the current time in seconds.
        """
        self._paths, self._journal, self._stop = paths, journal, stop
        self._print_line, self._grace_s, self._clock = print_line, grace_s, clock
        self._offset = journal.size()
        self._deadline: float | None = None

    def __call__(self) -> bool:
        """Whether training may be left now; the first call passes the driver's request on to the workers."""
        new = [record for record, self._offset in self._journal.read(self._offset)]
        last = next((each for each in reversed(new) if isinstance(each, (Started, Acknowledged, Stopped))), None)
        if self._deadline is None:
            if last is None or isinstance(last, Stopped):
                return True
            try:
                request_stop(self._paths.preempt, self._paths.attempt.read_text(), self._stop.reason or "")
            except OSError:  # a full disk, say, which would take no checkpoint either
                return True
            self._print_line(f"stopping ({self._stop.reason}): the workers write a checkpoint")
            self._deadline = self._clock() + ACKNOWLEDGE_S
        if isinstance(last, Acknowledged):  # perhaps of an earlier request, such as that before a resize
            self._deadline = self._clock() + self._grace_s
        if isinstance(last, Stopped):
            self._deadline = self._clock() + SHUTDOWN_S
        return self._clock() >= self._deadline
