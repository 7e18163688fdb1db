"""Preemption: on SIGTERM the run writes a checkpoint and exits with code 75.

A heartbeat that is answered with `preempt` sends SIGTERM to its own process. Workers that are training are asked for a
checkpoint after the current step; at any other time there is nothing to save, and the driver ends at once. A second
SIGTERM, or workers that do not answer in time, also end the driver: the last complete checkpoint is good.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.run.journal import Journal, Started
from trainer.run.paths import RunPaths
from trainer.run.stop_request import request_stop

EXIT_CODE = 75
GRACE_S = 60.0
RERAISE_AFTER_S = 5.0  # seconds until `Preempted` is raised again if it was lost


class Preempted(BaseException):
    """The driver was asked to give its machines back; like KeyboardInterrupt, not for `except Exception` to swallow."""


class Preemption:
    """Handles requests to stop the driver.

    Attributes:
        reason: why the driver was asked to stop; None while nobody asked.
    """

    def __init__(self, paths: RunPaths, grace_s: float = GRACE_S) -> None:
        """Prepare for the run of `paths`, whose workers get `grace_s` seconds for their checkpoint."""
        self.reason: str | None = None
        self._paths, self._grace_s = paths, grace_s
        self._given_reason: str | None = None
        self._training_since: int | None = None
        self._timer: threading.Timer | None = None

    def ask(self, reason: str) -> None:
        """Ask the driver to stop, from any thread of this process; equivalent to SIGTERM."""
        self._given_reason = reason
        os.kill(os.getpid(), signal.SIGTERM)

    def listen(self) -> None:
        """Install the SIGTERM handler, from the main thread; again after `ray.init`, which replaces it."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    @contextmanager
    def training(self, journal: Journal) -> Iterator[None]:
        """Context in which workers train; their first record follows the journal's current end.

        Raises:
            Preempted: on leaving, if the driver was asked to stop.
        """
        self._training_since = journal.size()
        try:
            yield
        except Exception:
            if self.reason is None:
                raise  # otherwise what went wrong will go wrong again, or was the machines' being taken away
        finally:
            self._training_since = None
            self.cancel_timer()
        if self.reason is not None:
            raise Preempted(self.reason)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        again = self.reason is not None
        self.reason = self.reason or self._given_reason or "SIGTERM"
        if again or not self._workers_train():
            self._raise_again_after(
                RERAISE_AFTER_S
            )  # what is raised in a destructor or in compiled code may be lost there
            raise Preempted(self.reason)
        request_stop(self._paths.preempt, self._paths.attempt.read_text(), self.reason)
        self._raise_again_after(self._grace_s)

    def cancel_timer(self) -> None:
        """Cancel the timer that repeats SIGTERM; the driver is ending."""
        if self._timer:
            self._timer.cancel()

    def _raise_again_after(self, after_s: float) -> None:
        self.cancel_timer()
        self._timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGTERM))
        self._timer.daemon = True
        self._timer.start()

    def _workers_train(self) -> bool:
        since = self._training_since
        return since is not None and any(True for _ in Journal(self._paths.journal).records(Started, since))


@contextmanager
def listening(preemption: Preemption) -> Iterator[None]:
    """Handle SIGTERM in this context, and restore the previous handler."""
    before = signal.getsignal(signal.SIGTERM)
    preemption.listen()
    try:
        yield
    finally:
        preemption.cancel_timer()
        signal.signal(signal.SIGTERM, before)
