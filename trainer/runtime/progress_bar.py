"""Progress of some work: a bar on a terminal, occasional lines elsewhere (a file, a job's log)."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_INTERVAL_S = 15.0


class ProgressBar:
    """The progress of one part at a time, drawn while used as a context manager."""

    def __init__(self, console: Console, stage: str) -> None:
        """Begin with a part of unknown length; nothing is drawn yet."""
        self.console = console
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._stage, self._last_line = stage, 0.0
        self._task = self._bar.add_task(stage, total=None, text="")

    def __enter__(self) -> "ProgressBar":
        """Begin to draw, on a terminal."""
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self.console.is_terminal:
            self._bar.stop()

    @property
    def total(self) -> float | None:
        """How long the present part is; None where that is unknown."""
        return self._bar.tasks[0].total

    def begin(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Go on to another part."""
        self._bar.remove_task(self._task)
        self._stage, self._task = stage, self._bar.add_task(stage, completed=done, total=total, text="")

    def update(self, done: int, line: str, text: str = "", last: bool = False) -> None:
        """Show how far the present part is.

        Args:
            done: amount done, of `total`.
            line: line to print where there is no terminal, at most every LINE_INTERVAL_S seconds.
            text: text beside the bar.
            last: print the line in any case.
        """
        self._bar.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not self.console.is_terminal and (last or now - self._last_line >= LINE_INTERVAL_S):
            self._last_line = now
            self.console.print(line, markup=False)

    def blocks(self, stage: str, done: int, total: int) -> None:
        """Show how many of a part's blocks are finished."""
        if stage != self._stage:
            self.begin(stage, done, total)
            self._last_line = time.monotonic()
        if done < total:
            self.update(done, f"  {stage}: {done} of {total} blocks")
