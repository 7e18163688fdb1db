"""Stopping a command: SIGTERM, Ctrl-C or the queue asks, and the process ends with code 75, to be run again.

A signal handler runs between two instructions of the main thread, whatever locks it holds just then, and an exception
raised there is lost in compiled code such as `ray.get`. So handlers count the requests and do nothing else. What may
block runs in a thread of its own, and the thread that waits for it looks at the count in short turns.
"""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn, TypeVar

from trainer.runtime.ray_cluster import end_local_cluster

EXIT_CODE = 75
POLL_S = 0.05
EXIT_TIMEOUT_S = 5.0
REASONS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

T = TypeVar("T")
Call = tuple["Future[Any]", Callable[[], Any]]


class Preempted(BaseException):
    """The process was asked to stop; like KeyboardInterrupt, not for `except Exception` to swallow."""


class Stop:
    """Requests to stop this process, or a part of it that a caller runs.

    Attributes:
        reason: the first request's reason; None while nobody asked.
        at_once: whether there was a second request: nothing is waited for any more.
        failure: an error that makes waiting useless, such as the loss of the cluster.
    """

    def __init__(self, listen: Callable[[], None] = lambda: None) -> None:
        """Nobody has asked yet; `listen` is called in every turn of a wait."""
        self.reason: str | None = None
        self.at_once = False
        self.failure: Exception | None = None
        self._calls: SimpleQueue[Call | None] | None = None
        self._listen = listen

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

        All functions run in one daemon thread, one after the other; one that is left behind goes on there until the
        process ends, and no other follows it. The thread stays: Linux ends a process's children, such as those of a
        local Ray cluster, with the thread that started them, if they ask to die with their parent.

        Args:
            function: what to run.
            may_leave: asked in every turn after the first request: whether the function need not be waited for.

        Returns:
            The function's result.

        Raises:
            Preempted: there was a request before the function began, while it ran, or before it failed.
            Exception: the function's own, or that waiting is useless.
        """
        self.check()
        if self._calls is None:
            self._calls = SimpleQueue()
            weakref.finalize(self, self._calls.put, None)  # ends the thread
            threading.Thread(target=_run_all, args=(self._calls,), name="stoppable", daemon=True).start()
        outcome = Future[T]()
        self._calls.put((outcome, function))
        while not outcome.done() and not self._may_leave(may_leave):
            wait([outcome], POLL_S)
            self._listen()
        if not outcome.done() or outcome.exception() is not None:
            self.check()
        return outcome.result()

    def _may_leave(self, may_leave: Callable[[], bool]) -> bool:
        return self.at_once or self.failure is not None or (self.reason is not None and may_leave())


def _run_all(calls: "SimpleQueue[Call | None]") -> None:
    while (call := calls.get()) is not None:
        outcome, function = call
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the outcome
            outcome.set_exception(error)
        del call, outcome, function  # with what they refer to, while the thread waits for the next


@contextmanager
def listening() -> Iterator[Stop]:
    """The requests that SIGTERM and Ctrl-C make, from the main thread; the handlers of before are restored.

    The handlers are installed again in every turn of a wait: joining a cluster puts Ray's own in their place, which
    prints a stack trace.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        stop.ask(REASONS[signal.Signals(number)])

    def listen() -> None:
        for number in REASONS:
            signal.signal(number, handler)

    stop, before = Stop(listen), {number: signal.getsignal(number) for number in REASONS}
    listen()
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
        end_local_cluster()
        os._exit(code)
    deadline = threading.Timer(EXIT_TIMEOUT_S, os._exit, (code,))
    deadline.daemon = True
    deadline.start()
    sys.exit(code)
