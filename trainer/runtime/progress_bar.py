"""Progress of a standalone evaluation, on standard error: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 15.0


class Bar:
    """Shows how many of a stage's blocks are finished while used as a context manager."""

    def __init__(self) -> None:
        """Nothing is shown before a stage is."""
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._stage, self._last_line = "", time.monotonic()
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> "Bar":
        """Begin to draw, on a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """A stage has so many of its blocks."""
        if self._console.is_terminal:
            if stage != self._stage:
                self._bar.reset(self._task, description=stage)
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last_line >= LINE_EVERY_SECONDS and done < total:
            self._last_line = time.monotonic()
            self._console.print(f"  {stage}: {done} of {total} blocks")
        self._stage = stage
