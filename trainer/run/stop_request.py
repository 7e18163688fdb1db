"""How the workers are asked to stop: a file that names the attempt it is meant for, and why.

Rank 0 looks at it from a thread, so that storage which is slow to answer delays no step; the loop tells the others.
"""

import json
import threading
from pathlib import Path

from trainer.files import write_json

POLL_SECONDS = 0.2


def put_up(file: Path, attempt: str, reason: str) -> None:
    """Ask the workers of `attempt` for a checkpoint and an end."""
    write_json(file, {"attempt": attempt, "reason": reason})


def take_down(file: Path, reason: str) -> None:
    """Remove the sign put up for `reason`, so that those who come after do not stop; one for another reason stays."""
    sign = _read(file)
    if sign.get("reason") == reason:
        file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, str]:
    """What a sign says; nothing where there is none."""
    try:
        sign = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return sign if isinstance(sign, dict) else {}


class StopSign:
    """Watches the file of one attempt.

    Attributes:
        reason: why to stop; None while there is no need to.
    """

    def __init__(self, file: Path, attempt: str) -> None:
        """Begin to watch."""
        self.reason: str | None = None
        self._file, self._attempt = file, attempt
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-sign", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.reason is None and not self._closed.wait(POLL_SECONDS):
            sign = _read(self._file)
            if sign.get("attempt") == self._attempt:
                self.reason = str(sign.get("reason", ""))
