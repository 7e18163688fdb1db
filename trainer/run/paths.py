"""The layout of a run's folder: one folder per run, on storage that every node sees."""

from dataclasses import dataclass
from pathlib import Path

from trainer.config.run_config import RunConfig


@dataclass(frozen=True)
class RunPaths:
    """The files of one run.

    Attributes:
        root: the run's folder, storage/experiment/name.
    """

    root: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """The paths of a resolved configuration."""
        assert config.run.storage is not None, "resolve() fills it"
        assert config.run.name is not None, "resolve() fills it"
        return cls(Path(config.run.storage) / config.run.experiment / config.run.name)

    @property
    def initial(self) -> Path:
        """The package whose weights the run begins with, if it begins with any."""
        return self.root / "initial"

    def stacks(self, attempt: str) -> Path:
        """Stacks of an attempt's ranks, where they hung: rank-N.txt."""
        return self.root / "stacks" / attempt

    @property
    def identity(self) -> Path:
        """The method that this name stands for, and the run's configuration."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """Lock file, held by the driver that is working on the run."""
        return self.root / "lock"

    @property
    def attempt(self) -> Path:
        """Names the attempt in charge; workers left over from a killed driver read another name here and stop."""
        return self.root / "attempt"

    @property
    def preempt(self) -> Path:
        """Stop request: asks the workers of an attempt to write a checkpoint and stop."""
        return self.root / "preempt.json"

    @property
    def journal(self) -> Path:
        """The run's events, one JSON record per line."""
        return self.root / "journal.jsonl"

    @property
    def tracking(self) -> Path:
        """The MLflow run, and how far the journal has been uploaded to it."""
        return self.root / "tracking.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, one folder per step."""
        return self.root / "checkpoints"

    @property
    def ema(self) -> Path:
        """Snapshots of the EMA tracks, one folder per step."""
        return self.root / "ema"

    @property
    def package(self) -> Path:
        """The model package, from the EMA weights of the last step."""
        return self.root / "package"

    def evaluation(self, step: int) -> Path:
        """Results of the checkpoint that was evaluated at `step` while training went on."""
        return self.root / "evaluations" / f"step-{step:08d}"

    @property
    def results(self) -> Path:
        """Results of the final evaluation: summary.json, samples.npy and pictures."""
        return self.root / "results"

    @property
    def summary(self) -> Path:
        """The run's results; its presence with enough steps means that the run is done."""
        return self.results / "summary.json"

    @property
    def error(self) -> Path:
        """The traceback of an unexpected error."""
        return self.root / "error.log"

    @property
    def ray(self) -> Path:
        """Ray Train's own files, one folder per attempt."""
        return self.root / "ray"
