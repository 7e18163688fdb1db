"""Stopping a command: SIGTERM, Ctrl-C or the queue asks, and the process ends with code 75, to be run again.

A signal handler runs between two instructions of the main thread, whatever locks it holds just then, and an exception
raised there is lost in compiled code such as `ray.get`. So handlers count the requests and do nothing else. What may
block runs in a thread of its own, and the thread that waits for it looks at the count in short turns.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TypeVar

EXIT_CODE = 75
POLL_S = 0.05
EXIT_TIMEOUT_S = 5.0
REASONS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

T = TypeVar("T")


class Preempted(BaseException):
    """The process was asked to stop; like KeyboardInterrupt, not for `except Exception` to swallow."""


class Stop:
    """Requests to stop this process, or a part of it that a caller runs.

    Attributes:
        reason: the first request's reason; None while nobody asked.
        at_once: whether there was a second request: nothing is waited for any more.
        failure: an error that makes waiting useless, such as the loss of the cluster.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.reason: str | None = None
        self.at_once = False
        self.failure: Exception | None = None

    def ask(self, reason: str) -> None:
        """Ask to stop, from any thread or from a signal handler; the second time, at once."""
        self.at_once = self.reason is not None
        self.reason = self.reason or reason

    def fail(self, failure: Exception) -> None:
        """Have whoever waits raise an error instead, from any thread."""
        self.failure = failure

    def check(self) -> None:
        """Go on unless there was a request.

        Raises:
            Preempted: there was one.
            Exception: waiting is useless.
        """
        if self.failure is not None:
            raise self.failure
        if self.reason is not None:
            raise Preempted(self.reason)

    def call(self, function: Callable[[], T], may_leave: Callable[[], bool] = lambda: True) -> T:
        """Run a function that may block, and leave it behind when there is a request.

        A function that is left behind goes on in its daemon thread, until the process ends.

        Args:
            function: what to run, in a thread of its own.
            may_leave: asked in every turn after the first request: whether the function need not be waited for.

        Returns:
            The function's result.

        Raises:
            Preempted: there was a request before the function began, while it ran, or before it failed.
            Exception: the function's own, or that waiting is useless.
        """
        self.check()
        outcome = Future[T]()
        thread = threading.Thread(target=_settle, args=(outcome, function), name="stoppable", daemon=True)
        thread.start()
        while thread.is_alive() and not self._may_leave(may_leave):
            thread.join(POLL_S)
        if not outcome.done() or outcome.exception() is not None:
            self.check()
        return outcome.result()

    def _may_leave(self, may_leave: Callable[[], bool]) -> bool:
        return self.at_once or self.failure is not None or (self.reason is not None and may_leave())


def _settle(outcome: "Future[T]", function: Callable[[], T]) -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the outcome
        outcome.set_exception(error)


@contextmanager
def listening() -> Iterator[Stop]:
    """The requests that SIGTERM and Ctrl-C make, from the main thread; the handlers of before are restored."""
    stop = Stop()

    def handler(number: int, _frame: FrameType | None) -> None:
        stop.ask(REASONS[signal.Signals(number)])

    before = {number: signal.signal(number, handler) for number in REASONS}
    try:
        yield stop
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def exit_process(code: int) -> NoReturn:
    """End this process, whatever its threads do; signals that come now change nothing.

    After a stop, work may have been left behind in compiled code, which an orderly exit would wait for or crash in.
    """
    for number in REASONS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    if code == EXIT_CODE:
        os._exit(code)
    deadline = threading.Timer(EXIT_TIMEOUT_S, os._exit, (code,))
    deadline.daemon = True
    deadline.start()
    sys.exit(code)
