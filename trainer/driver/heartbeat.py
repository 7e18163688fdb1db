"""Heartbeats to the queue that lent the machines, which may answer that it wants them back.

The contract, also in docs/queue.md: every INTERVAL_S seconds a POST of a JSON object {job, run, step, steps,
saved_step, state, doing} to the URL in DUALVIEW_QUEUE_URL, with the token in the file that DUALVIEW_QUEUE_TOKEN_FILE
names; the answer is a JSON object whose `preempt` is true to ask for a checkpoint and exit code 75, with an optional
`reason`. Anything else, and no answer at all, means: go on. Where a file has the name of that one with `.url` appended,
it holds the URL that is right now: another dispatcher may have taken over.
"""

import json
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffusion.config.errors import masked
from diffusion.json_text import json_text
from trainer.config.run_config import RunConfig
from trainer.driver.progress import PREPARING, STARTING_WORKERS
from trainer.errors import InputError
from trainer.run.journal import CheckpointSaved, Journal

QUEUE_URL_VARIABLE = "DUALVIEW_QUEUE_URL"
TOKEN_FILE_VARIABLE = "DUALVIEW_QUEUE_TOKEN_FILE"  # noqa: S105 - the name of a variable
URL_SUFFIX = ".url"
INTERVAL_S = 5.0
TIMEOUT_S = 5.0
LAST_TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 1 << 16


def queue_url() -> str | None:
    """Where to send heartbeats; None without DUALVIEW_QUEUE_URL.

    Raises:
        InputError: it is no http or https URL.
    """
    url = os.environ.get(QUEUE_URL_VARIABLE)
    if not url:
        return None
    if not is_url(url):
        raise InputError(f"{QUEUE_URL_VARIABLE} = {masked(url)!r}: not a URL; allowed: http(s)://host[:port]/path")
    return url


def is_url(text: str) -> bool:
    """Whether a text is an http or https URL."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class Heartbeat:
    """Sends heartbeats from a thread until it is closed, or until one is answered with `preempt`."""

    def __init__(
        self,
        url: str,
        config: RunConfig,
        journal: Journal,
        ask: Callable[[str], None],
        warn: Callable[[str], None],
        doing: Callable[[], str] = lambda: "training",
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Begin.

        Args:
            url: URL that heartbeats are sent to.
            config: the run's configuration.
            journal: the run's journal, from which the current step is read.
            ask: called once, with the reason, when the queue wants the machines back.
            warn: called once, with a message, when a heartbeat gets no valid answer.
            doing: name of the run's current stage.
            interval_s: seconds between heartbeats.
        """
        self._url, self._journal, self._ask, self._warn, self._doing = url, journal, ask, warn, doing
        self._status: dict[str, Any] = {"job": os.environ.get("DUALVIEW_JOB"), "run": config.run.name, "step": 0}
        self._status |= {"steps": config.training.steps, "saved_step": 0}
        self._offset, self._warned, self._unanswered, self._interval_s = 0, False, 0, interval_s
        self._closed, self._sending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say how far the run came, which the last checkpoint belongs to, unless the queue has not answered lately."""
        self._closed.set()
        if not self._unanswered:
            self._send(LAST_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            answer = self._send()
            if self._closed.is_set():
                return
            if answer.get("preempt") is True:
                self._ask(str(answer.get("reason") or "the queue wants the machines back"))
                return
            if self._closed.wait(self._interval_s):
                return

    def _send(self, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        with self._sending:
            return self._send_alone(timeout_s)

    def _send_alone(self, timeout_s: float) -> dict[str, Any]:
        for record, offset in self._journal.read(self._offset):
            self._offset = offset
            self._status["step"] = self._status["step"] if record.step is None else record.step
            if isinstance(record, CheckpointSaved):
                self._status["saved_step"] = record.step
        doing = self._doing()
        state = "starting" if doing in (PREPARING, STARTING_WORKERS) else "running"
        body = json_text({**self._status, "state": state, "doing": doing}).encode()
        url = self._url if self._unanswered % 2 else _present(self._url)
        try:
            headers = {"Content-Type": "application/json", **_authorization()}
            request = urllib.request.Request(url, body, headers)  # noqa: S310 - checked
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310 - checked
                answer = json.loads(reply.read(MAX_ANSWER_BYTES))
        except (OSError, ValueError) as error:
            return self._miss(url, str(error))
        if not isinstance(answer, dict):
            return self._miss(url, "the answer is no JSON object")
        self._unanswered = 0
        return answer

    def _miss(self, url: str, problem: str) -> dict[str, Any]:
        """No answer: warn once, and ask at the other address next, since the file's may be that of a former leader."""
        self._unanswered += 1
        if not self._warned and not self._closed.is_set():
            self._warn(f"warning: {QUEUE_URL_VARIABLE} = {masked(url)}: {problem}; the run goes on")
        self._warned = True
        return {}


def _present(url: str) -> str:
    """The URL of the dispatcher that leads now, or the one that was given at the start."""
    try:
        now = Path(os.environ[TOKEN_FILE_VARIABLE] + URL_SUFFIX).read_text().strip()
    except (KeyError, OSError, ValueError):
        return url
    return now if is_url(now) else url


def _authorization() -> dict[str, str]:
    """The header that shows which attempt this is; the queue keeps its token in a file that its user alone can read."""
    file = os.environ.get(TOKEN_FILE_VARIABLE)
    return {"Authorization": f"Bearer {Path(file).read_text().strip()}"} if file else {}
