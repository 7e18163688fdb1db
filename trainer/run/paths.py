"""Where a run keeps what: one folder per run, on storage that every node sees."""

from dataclasses import dataclass
from pathlib import Path

from trainer.config.run_config import RunConfig


@dataclass(frozen=True)
class RunPaths:
    """The files of one run.

    Attributes:
        root: storage/experiment/name.
    """

    root: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """The paths of a resolved configuration."""
        assert config.run.storage is not None, "resolve() fills it"
        assert config.run.name is not None, "resolve() fills it"
        return cls(Path(config.run.storage) / config.run.experiment / config.run.name)

    @property
    def identity(self) -> Path:
        """The method this name belongs to."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the driver that is working on the run."""
        return self.root / "lock"

    @property
    def attempt(self) -> Path:
        """The attempt in charge: workers that a killed driver left behind find another name here and stop."""
        return self.root / "attempt"

    @property
    def preempt(self) -> Path:
        """Asks the workers of an attempt for a checkpoint and an end."""
        return self.root / "preempt.json"

    @property
    def journal(self) -> Path:
        """What happened, one JSON record a line."""
        return self.root / "journal.jsonl"

    @property
    def tracking(self) -> Path:
        """How far the journal has been uploaded, and to which MLflow run."""
        return self.root / "tracking.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per step."""
        return self.root / "checkpoints"

    @property
    def ema(self) -> Path:
        """Snapshots of the EMA's tracks, one folder per step."""
        return self.root / "ema"

    @property
    def package(self) -> Path:
        """The model package, from the EMA weights of the last step."""
        return self.root / "package"

    def evaluation(self, step: int) -> Path:
        """What was found of a checkpoint while training went on."""
        return self.root / "evaluations" / f"step-{step:08d}"

    @property
    def results(self) -> Path:
        """summary.json, samples.npy and pictures."""
        return self.root / "results"

    @property
    def summary(self) -> Path:
        """The run's results; its presence with enough steps means that the run is done."""
        return self.results / "summary.json"

    @property
    def error(self) -> Path:
        """The traceback of an error that nobody foresaw."""
        return self.root / "error.log"

    @property
    def ray(self) -> Path:
        """Ray Train's own files, one folder per attempt."""
        return self.root / "ray"
