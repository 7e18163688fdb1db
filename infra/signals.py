"""Signals of `make run`: the first one ends it through an ordinary exception; during cleanup they are ignored."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """From now on a termination signal raises SystemExit with the shell's exit code, 128 + its number."""
    for number in TERMINATION_SIGNALS:
        signal.signal(number, _exit)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores termination signals while the block runs, which must be short and bounded in time."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in TERMINATION_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
