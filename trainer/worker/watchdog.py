"""What a rank was doing when no step ends any more: the stacks of its threads, in a file that the driver looks for.

The file is written by a thread of the interpreter that needs none of Python's locks (`faulthandler`), so that it is
written too where a rank hangs inside a library's call.
"""

import faulthandler
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

REMEMBERED = 101  # steps whose median is taken
SLACK = 8
"""The patience is counted anew each time an eighth of it has passed, and not at each step."""
WRITING_S = 3600.0
"""Patience where the next checkpoint waits for one that is being written: slow storage is no hang."""


class Watchdog:
    """Writes the stacks of this process to a file if no step ends for a long time.

    Long is `medians` times the median duration of the last steps, or `floor_s` if that is longer. The first step may
    take as long as it needs: it compiles.
    """

    def __init__(self, file: Path, floor_s: float, medians: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Not counting yet.

        Args:
            file: for the stacks; empty, and in the end removed, where all goes well.
            floor_s: shortest patience, in seconds.
            medians: patience in medians of a step's duration.
            clock: the current time in seconds.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        private = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._path, self._file = file, os.fdopen(private, "a")  # what an earlier process of this rank wrote stays
        self._floor_s, self._medians, self._clock = floor_s, medians, clock
        self._durations = deque[float](maxlen=REMEMBERED)
        self._last: float | None = None
        self._armed: tuple[float, float] | None = None

    def patience_s(self, writing: bool) -> float:
        """Seconds after which a step is overdue."""
        floor_s = max(self._floor_s, WRITING_S) if writing else self._floor_s
        return max(floor_s, self._medians * statistics.median(self._durations))

    def step_ended(self, writing: bool = False) -> None:
        """Count from now on.

        Args:
            writing: whether a checkpoint is being written, for which the next step may have to wait.
        """
        now, last = self._clock(), self._last
        self._last = now
        if last is None:
            return
        if self._armed and now - last >= self._armed[1]:
            self._file.truncate(0)  # it was only slow
        self._durations.append(now - last)
        patience = self.patience_s(writing)
        if self._armed is None or now - self._armed[0] >= patience / SLACK or writing != (self._armed[1] >= WRITING_S):
            faulthandler.dump_traceback_later(patience, file=self._file)
            self._armed = now, patience

    def pause(self) -> None:
        """Do not count until two more steps have ended: weights are loaded, and the next step compiles anew."""
        faulthandler.cancel_dump_traceback_later()
        self._last = self._armed = None

    def close(self) -> None:
        """Stop counting; a file without stacks is removed."""
        if self._file.closed:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # other ranks have files there, or have removed it
                self._path.parent.rmdir()
