"""What the sweep's process prints: the trials one after another, each from its own journal."""

from typing import Any

from rich.console import Console

from trainer.driver.progress import ProgressView
from trainer.run.journal import Journal, Metrics, Record
from trainer.run.paths import RunPaths
from tuning.scores import FRECHET, VLB, VLB_SE
from tuning.space import Trial
from tuning.sweep import Sweep


class TrialView(ProgressView):
    """Progress of a trial that runs in another process; the step count shows when its evaluation begins."""

    def __init__(self, journal: Journal, steps: int) -> None:
        super().__init__(journal)
        self._steps = steps
        self.stage("starting workers")

    def _show(self, record: Record) -> None:
        super()._show(record)
        if isinstance(record, Metrics) and record.step >= self._steps:
            self._bar.begin("evaluating")


class SweepProgress:
    """Prints when trials start and end, and the progress of the current trial if they run one at a time."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._console, self._count = console, len(sweep.trials)
        self._numbers = {trial.name: number for number, trial in enumerate(sweep.trials, start=1)}
        self._shows_steps = sweep.concurrent_trials == 1
        self._view: TrialView | None = None

    def print_line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    def begin(self, trial: Trial) -> None:
        """Print that a trial starts."""
        self.print_line(f"trial {self._numbers[trial.name]} of {self._count}: {trial.label}")
        if self._shows_steps:
            self._view = TrialView(Journal(RunPaths.of(trial.config).journal), trial.config.training.steps)
            self._view.__enter__()

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """Print a trial's scores, or the reason why it failed."""
        self.close()
        prefix = "" if self._shows_steps else f"trial {self._numbers[trial.name]}: "
        if "reason" in result:
            self.print_line(f"  {prefix}failed: {result['reason']}")
            return
        frechet = f"  {FRECHET} {result[FRECHET]:.4g}" if FRECHET in result else ""
        self.print_line(f"  {prefix}{VLB} {result[VLB]:.3f} ± {result[VLB_SE]:.3f}{frechet}")
        if not result["recorded"]:
            self.print_line("  warning: MLflow did not respond; run the same command again to record this trial")

    def close(self) -> None:
        """Remove the progress bar."""
        if self._view is not None:
            self._view.__exit__(None, None, None)
            self._view = None
