"""What the sweep's process prints: one steady story, a trial after the other, each drawn from its own journal."""

from typing import Any

from rich.console import Console

from trainer.driver.progress import ProgressView
from trainer.run.journal import Journal, Metrics, Record
from trainer.run.paths import RunPaths
from tuning.scores import FRECHET, VLB, VLB_SE
from tuning.space import Trial
from tuning.sweep import Sweep


class TrialView(ProgressView):
    """A trial's progress; its process prints elsewhere, so what comes after training is told from the steps."""

    def __init__(self, journal: Journal, steps: int) -> None:
        super().__init__(journal)
        self._steps = steps
        self.stage("starting workers")

    def _show(self, record: Record) -> None:
        super()._show(record)
        if isinstance(record, Metrics) and record.step >= self._steps:
            self._bar.begin("evaluating")


class Story:
    """Prints when trials start and end, and between the two how far the trial is where they run one at a time."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._console, self._count = console, len(sweep.trials)
        self._numbers = {trial.name: number for number, trial in enumerate(sweep.trials, start=1)}
        self._follows = sweep.concurrent_trials == 1
        self._view: TrialView | None = None

    def print_line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    def begin(self, trial: Trial) -> None:
        """A trial starts."""
        self.print_line(f"trial {self._numbers[trial.name]} of {self._count}: {trial.label}")
        if self._follows:
            self._view = TrialView(Journal(RunPaths.of(trial.config).journal), trial.config.training.steps)
            self._view.__enter__()

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has its scores, or a reason."""
        self.close()
        whose = "" if self._follows else f"trial {self._numbers[trial.name]}: "
        if "reason" in result:
            self.print_line(f"  {whose}failed: {result['reason']}")
            return
        frechet = f"  {FRECHET} {result[FRECHET]:.4g}" if FRECHET in result else ""
        self.print_line(f"  {whose}{VLB} {result[VLB]:.3f} ± {result[VLB_SE]:.3f}{frechet}")
        if not result["recorded"]:
            self.print_line("  warning: MLflow did not answer; the same command records this trial later")

    def close(self) -> None:
        """Take the bar away, whatever happens to the trial."""
        if self._view is not None:
            self._view.__exit__(None, None, None)
            self._view = None
