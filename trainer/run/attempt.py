"""Which attempt at a run is in charge: workers that a killed driver left behind must write nothing more."""

from dataclasses import dataclass
from pathlib import Path

from diffusion import durable


@dataclass(frozen=True)
class Fence:
    """Which attempt a group of workers belongs to, and the file that names the one in charge."""

    file: Path
    attempt: str

    def holds(self) -> bool:
        """Whether this attempt is still in charge."""
        return self.file.read_text() == self.attempt


class SupersededError(RuntimeError):
    """Another attempt at the run has begun; this one, left over from a driver that is gone, must write nothing more."""


def begin_attempt(attempt_file: Path, attempt: str) -> None:
    """Make `attempt` the only one that may write checkpoints."""
    durable.write_text(attempt_file, attempt)
