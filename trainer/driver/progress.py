"""One steady view of a run: a bar on a terminal, a line now and then elsewhere; drawn from the journal."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from trainer.run.journal import CheckpointEvaluated, Journal, Metrics, Record, Started, Warned

POLL_SECONDS = 0.5
LINE_EVERY_SECONDS = 15.0
SHOWN = ("vlb_bpd", "frechet_classifier", "frechet_pixels", "frechet_efficientnet_lite0", "fid")  # of an evaluation


class ProgressView:
    """Follows a journal while used as a context manager; `say` prints a line of its own.

    On a terminal it draws a bar; elsewhere (a file, a job's log) it prints a line at most every 15 s.
    """

    def __init__(self, journal: Journal) -> None:
        """Start at the journal's present end: what an earlier attempt did is not shown again."""
        self._console = Console(highlight=False, soft_wrap=True)
        self._journal = journal
        self._offset = journal.size()
        self._stop, self._lock = threading.Event(), threading.RLock()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=None, text="")
        self._last_line = 0.0

    def __enter__(self) -> "ProgressView":
        """Begin to follow."""
        if self._console.is_terminal:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take in what is left and remove the bar."""
        self._stop.set()
        self._thread.join()
        self._take_in()
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, markup=False)

    def stage(self, name: str, completed: int = 0, total: int | None = None) -> None:
        """Begin a part of the run: the bar shows its name, and how far it is where that can be told."""
        with self._lock:
            self._take_in()
            self._begin(name, completed, total)

    def _begin(self, name: str, completed: int = 0, total: int | None = None) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, completed=completed, total=total, text="")

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._take_in()

    def _take_in(self) -> None:
        with self._lock:
            for record, offset in self._journal.read(self._offset):
                self._offset = offset
                self._show(record)

    def _show(self, record: Record) -> None:
        match record:
            case Started():
                self._started(record)
            case Metrics():
                self._metrics(record)
            case CheckpointEvaluated():
                scores = [f"{name} {record.scores[name]:.4g}" for name in SHOWN if name in record.scores]
                self.say(f"  step {record.step} evaluated: {', '.join(scores)}")
            case Warned():
                self.say(f"  warning: {record.text}")
            case _:
                pass

    def _started(self, record: Started) -> None:
        after = f"resuming after step {record.step} of" if record.step else "training"
        self.say(f"  {after} {record.steps} steps on {record.world_size} workers")
        self._begin("training", record.step, record.steps)

    def _metrics(self, record: Metrics) -> None:
        values = record.values
        loss = f"loss {values['loss']:.4f}" if "loss" in values else "no finite loss"
        text = f"{loss}  {values['images_per_second']:,.0f} images/s"
        self._bar.update(self._task, completed=record.step, text=text)
        now = time.monotonic()
        total = self._bar.tasks[0].total
        if (
            not self._console.is_terminal
            and total
            and (now - self._last_line >= LINE_EVERY_SECONDS or record.step == total)
        ):
            self._last_line = now
            self.say(f"  step {record.step}/{total:.0f} ({record.step / total:.0%})  {text}")
