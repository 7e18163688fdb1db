"""Signals of `make run`: the first one ends it through the ordinary exception path, none disturbs the cleaning up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """From now on a signal that asks to end raises SystemExit with the shell's exit code, 128 + its number."""
    for number in ENDING:
        signal.signal(number, _exit)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores signals that ask to end while the block runs; keep it short, and bounded in time."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
