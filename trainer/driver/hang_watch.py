"""Whether the ranks still take steps: their own watchdogs say so, by a file with their stacks."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainer.errors import ClusterLostError
from trainer.run.paths import RunPaths

INTERVAL_S = 1.0
SETTLE_S = 15.0  # for the other ranks, which have counted from about the same moment


class HangWatch(threading.Thread):
    """Ends the driver with one line, and an exit code that has it tried again, where the ranks hang."""

    def __init__(self, paths: RunPaths, fail: Callable[[Exception], None]) -> None:
        """Not watching yet.

        Args:
            paths: of the run.
            fail: called with the error that ends the driver.
        """
        super().__init__(name="hang-watch", daemon=True)
        self._paths, self._fail = paths, fail
        self._closed = threading.Event()

    def run(self) -> None:
        """Look for stacks of the attempt in charge."""
        while not self._closed.wait(INTERVAL_S):
            try:
                folder = self._paths.stacks(self._paths.attempt.read_text().strip())
                files = list(folder.glob("rank-*.txt"))
                if any(_has_stacks(file) for file in files):
                    self._report(folder)
                    return
            except OSError:  # no attempt yet, or storage that does not answer
                continue

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self.is_alive():
            self.join()

    def _report(self, folder: Path) -> None:
        until = time.monotonic() + SETTLE_S
        files = sorted(folder.glob("rank-*.txt"))
        while time.monotonic() < until and not all(_has_stacks(file) for file in files):
            time.sleep(INTERVAL_S)
        written = [file for file in files if _has_stacks(file)]
        after = written[0].read_text().partition("!")[0].removeprefix("Timeout (").rstrip(")")
        self._fail(
            ClusterLostError(
                f"no step has ended for {after} (h:mm:ss); what {len(written)} of {len(files)} ranks were doing: "
                f"{folder}"
            )
        )


def _has_stacks(file: Path) -> bool:
    return file.stat().st_size > 0
