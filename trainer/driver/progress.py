"""The progress of a run, drawn from the journal: a bar on a terminal, occasional lines elsewhere."""

import threading
import time
from types import TracebackType

from diffusion.terminal import PlainConsole
from trainer.run.journal import CheckpointEvaluated, Initialised, Journal, Metrics, Record, Started, Warned
from trainer.runtime.progress_bar import ProgressBar

POLL_SECONDS = 0.5
PREPARING, STARTING_WORKERS = "preparing", "starting workers"  # the stages before a run has its gang
PROGRESS_METRICS = (
    "vlb_bpd",
    "frechet_classifier",
    "frechet_pixels",
    "frechet_efficientnet_lite0",
    "fid",
)  # scores of an evaluation that are printed


class ProgressView:
    """Follows a journal while used as a context manager; `print_line` prints a line of its own.

    On a terminal it draws a bar; elsewhere (a file, a job's log) it prints a line at most every 15 s.

    Attributes:
        training_since: when the first group of workers was seen to begin, by this process's monotonic clock, in
            seconds; None before. The clocks of the records may jump, or be other machines'.
        doing: name of the run's current stage, for people.
    """

    def __init__(self, journal: Journal) -> None:
        """Start at the journal's current end, so that records of earlier attempts are not shown again."""
        self._console = PlainConsole(soft_wrap=True)
        self._journal = journal
        self._offset = journal.size()
        self.training_since: float | None = None
        self.doing = PREPARING
        self._stop, self._lock = threading.Event(), threading.RLock()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._bar = ProgressBar(self._console, self.doing)

    def __enter__(self) -> "ProgressView":
        """Begin to follow."""
        self._bar.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the remaining records and remove the bar."""
        self._stop.set()
        self._thread.join()
        self._show_new()
        self._bar.__exit__(kind, error, trace)

    def print_line(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, markup=False)

    def stage(self, name: str, completed: int = 0, total: int | None = None) -> None:
        """Begin a part of the run: the bar shows its name and, where `total` is known, its progress."""
        with self._lock:
            self._show_new()
            self.doing = name
            self._bar.begin(name, completed, total)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._show_new()

    def _show_new(self) -> None:
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
                scores = [f"{name} {record.scores[name]:.4g}" for name in PROGRESS_METRICS if name in record.scores]
                self.print_line(f"  step {record.step} evaluated: {', '.join(scores)}")
            case Initialised():
                self.print_line(f"  {record.text}")
            case Warned():
                self.print_line(f"  warning: {record.text}")
            case _:
                pass

    def _started(self, record: Started) -> None:
        self.training_since = self.training_since or time.monotonic()
        after = f"resuming after step {record.step} of" if record.step else "training"
        self.print_line(f"  {after} {record.steps} steps on {record.world_size} workers")
        self.doing = "training"
        self._bar.begin(self.doing, record.step, record.steps)

    def _metrics(self, record: Metrics) -> None:
        values = record.values
        loss = f"loss {values['loss']:.4f}" if "loss" in values else "no finite loss"
        text = f"{loss}  {values['images_per_second']:,.0f} images/s"
        if total := self._bar.total:
            line = f"  step {record.step}/{total:.0f} ({record.step / total:.0%})  {text}"
            self._bar.update(record.step, line, text, last=record.step == total)
