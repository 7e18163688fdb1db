"""Whether the ranks still take steps: their own watchdogs say so, by a file with their stacks."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainer.errors import HungError, RunFailedError
from trainer.run.manifest import newest_whole
from trainer.run.paths import RunPaths

INTERVAL_S = 1.0
SETTLE_S = 15.0  # for the other ranks, which have counted from about the same moment
MAX_HANGS = 3
REACHED = "reached"  # beside an attempt's stacks: the step of the newest checkpoint when it hung


class HangWatch(threading.Thread):
    """Ends the driver when ranks hang, with one line and the exit code that asks for a retry.

    After MAX_HANGS attempts that hung without a newer checkpoint, the exit code is that of a run that cannot go on.
    """

    def __init__(self, paths: RunPaths, fail: Callable[[Exception], None]) -> None:
        """Not watching yet; the attempt that is in charge now is an earlier one, and is not looked at.

        Args:
            paths: of the run.
            fail: called with the error that ends the driver.
        """
        super().__init__(name="hang-watch", daemon=True)
        self._paths, self._fail = paths, fail
        self._earlier = self._attempt()
        self._closed = threading.Event()

    def _attempt(self) -> str:
        return self._paths.attempt.read_text().strip() if self._paths.attempt.is_file() else ""

    def run(self) -> None:
        """Look for stacks of the attempt in charge."""
        while not self._closed.wait(INTERVAL_S):
            try:
                attempt = self._attempt()
                if attempt != self._earlier and self._hangs(self._paths.stacks(attempt)):
                    return
            except OSError:  # storage that does not answer
                continue

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self.is_alive():
            self.join()

    def _hangs(self, folder: Path) -> bool:
        """Whether ranks have left their stacks in a folder, and have not gone on meanwhile; if so, ends the driver."""
        files = sorted(folder.glob("rank-*.txt"))
        if not any(_has_stacks(file) for file in files):
            return False
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until and not all(_has_stacks(file) for file in files):
            if self._closed.wait(INTERVAL_S):
                return False
        written = [file for file in files if _has_stacks(file)]
        if not written:  # a step was only slow
            return False
        duration = written[0].read_text().partition("!")[0].removeprefix("Timeout (").rstrip(")")
        reached = newest_whole(self._paths.checkpoints)
        (folder / REACHED).write_text(str(reached))
        text = (
            f"no step has ended for {duration} (h:mm:ss); the stacks of {len(written)} of {len(files)} ranks: {folder}"
        )
        hangs = sum(file.read_text() == str(reached) for file in folder.parent.glob(f"*/{REACHED}"))
        if hangs >= MAX_HANGS:
            self._fail(RunFailedError(f"{text}; {hangs} attempts have hung after the checkpoint of step {reached}"))
        else:
            self._fail(HungError(text))
        return True


def _has_stacks(file: Path) -> bool:
    return file.stat().st_size > 0
