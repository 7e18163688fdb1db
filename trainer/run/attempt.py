"""Fencing: only the attempt in charge may write, so workers left over from a killed driver write nothing more."""

from dataclasses import dataclass
from pathlib import Path

from diffusion import durable


@dataclass(frozen=True)
class Fence:
    """The attempt that a group of workers belongs to, and the file that names the attempt in charge."""

    file: Path
    attempt: str

    def holds(self) -> bool:
        """Whether this attempt is still in charge."""
        return self.file.read_text() == self.attempt


class SupersededError(RuntimeError):
    """A newer attempt is in charge of the run; this one must write nothing more."""


def begin_attempt(attempt_file: Path, attempt: str) -> None:
    """Put `attempt` in charge: from now on only its workers may write checkpoints."""
    durable.write_text(attempt_file, attempt)
