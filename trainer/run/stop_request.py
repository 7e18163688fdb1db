"""How workers are asked to stop: a file that names the attempt it is meant for and the reason.

Rank 0 polls the file from a thread, so that slow storage delays no step; the training loop tells the other ranks.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from trainer.files import is_mapping, read_json, write_json

POLL_SECONDS = 0.2


def request_stop(file: Path, attempt: str, reason: str) -> None:
    """Ask the workers of `attempt` to write a checkpoint and stop."""
    write_json(file, {"attempt": attempt, "reason": reason})


def clear_stop(file: Path, reason: str) -> None:
    """Remove the request made for `reason`, so that later workers do not stop; one made for another reason stays."""
    request = _read(file)
    if request.get("reason") == reason:
        file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, str]:
    """The fields of a stop request; empty where there is none."""
    try:
        request: object = read_json(file)
    except (OSError, ValueError):
        return {}
    return request if is_mapping(request) else {}


class StopRequest:
    """Watches for a stop request to one attempt.

    Attributes:
        reason: why the workers should stop; None while nobody asked.
    """

    def __init__(self, file: Path, attempt: str, acknowledge: Callable[[str], None]) -> None:
        """Start watching `file` for requests to `attempt`; `acknowledge` is called with the reason of one."""
        self.reason: str | None = None
        self._file, self._attempt, self._acknowledge = file, attempt, acknowledge
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-request", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.reason is None and not self._closed.wait(POLL_SECONDS):
            request = _read(self._file)
            if request.get("attempt") == self._attempt:
                reason = str(request.get("reason", ""))
                try:
                    self._acknowledge(reason)
                finally:
                    self.reason = reason
