"""Heartbeats to the queue that lent the machines, which may answer that it wants them back.

The contract, also in docs/queue.md: every INTERVAL_S seconds a POST of a JSON object {job, run, step, steps,
saved_step, state, doing} to the URL in DUALVIEW_QUEUE_URL, with the token in the file that DUALVIEW_QUEUE_TOKEN_FILE
names; the answer is a JSON object whose `preempt` is true to ask for a checkpoint and exit code 75, with an optional
`reason`. Anything else, and no answer at all, means: go on. Where a file has the name of that one with `.url` appended,
it holds the URL that is right now: another dispatcher may have taken over. Where one has it with `.answer` appended,
whoever took the port of a dispatcher that has ended learns nothing and is not obeyed: instead of the token the request
shows an HMAC that its second half is the key of, and the answer one that this file's content is the key of.
"""

import hashlib
import hmac
import json
import os
import secrets
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from diffusion.command import printable
from diffusion.config.errors import masked
from diffusion.json_text import json_text
from trainer.config.run_config import RunConfig
from trainer.driver.progress import PREPARING, STARTING_WORKERS
from trainer.errors import InputError
from trainer.run.journal import CheckpointSaved, Journal

QUEUE_URL_VARIABLE = "DUALVIEW_QUEUE_URL"
TOKEN_FILE_VARIABLE = "DUALVIEW_QUEUE_TOKEN_FILE"  # noqa: S105 - the name of a variable
URL_SUFFIX = ".url"
ANSWER_SUFFIX = ".answer"
INTERVAL_S = 5.0
TIMEOUT_S = 5.0
LAST_TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 1 << 16

T = TypeVar("T")


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
    """Whether a text is an http or https URL, without a user or a password, which would not be sent."""
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and "@" not in parts.netloc and (parts.port is None or parts.port > 0)
        return parts.scheme in ("http", "https") and named
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
        self._exchanges: dict[str, _Apart[tuple[bytes, str]]] = {}  # the last one by its URL
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say how far the run came, which the last checkpoint belongs to, unless the queue has not answered lately.

        Whatever is answered, and however slowly, the run ends as it would.
        """
        self._closed.set()
        if not self._unanswered:
            _Apart(lambda: self._send(LAST_TIMEOUT_S)).join(TIMEOUT_S + LAST_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            answer = self._send(TIMEOUT_S)
            if self._closed.is_set():
                return
            if answer.get("preempt") is True:
                self._ask(printable(str(answer.get("reason") or "the queue wants the machines back")))
                return
            if self._closed.wait(self._interval_s):
                return

    def _send(self, timeout_s: float) -> dict[str, Any]:
        with self._sending:
            return self._send_alone(timeout_s)

    def _send_alone(self, timeout_s: float) -> dict[str, Any]:
        url = self._url if self._unanswered % 2 else _present(self._url)
        try:
            answer = self._exchange(url, timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever is answered, the next one is sent
            return self._miss(url, str(error) or type(error).__name__)
        if not isinstance(answer, dict):
            return self._miss(url, "the answer is no JSON object")
        self._unanswered = 0
        return answer

    def _exchange(self, url: str, timeout_s: float) -> Any:  # noqa: ANN401 - JSON
        for record, offset in self._journal.read(self._offset):
            self._offset = offset
            self._status["step"] = self._status["step"] if record.step is None else record.step
            if isinstance(record, CheckpointSaved):
                self._status["saved_step"] = record.step
        doing = self._doing()
        state = "starting" if doing in (PREPARING, STARTING_WORKERS) else "running"
        body = json_text({**self._status, "state": state, "doing": doing}).encode()
        identity = _Identity.read()
        headers = {"Content-Type": "application/json", **identity.show(body)}
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - checked
        if url in self._exchanges and self._exchanges[url].is_alive():
            raise TimeoutError("an earlier heartbeat is still being answered")
        self._exchanges[url] = _Apart(lambda: _post(request, timeout_s))
        content, proof = self._exchanges[url].result(timeout_s)
        identity.check(content, proof)
        return json.loads(content)

    def _miss(self, url: str, problem: str) -> dict[str, Any]:
        """No answer: warn once, and ask at the other address next, since the file's may be that of a former leader."""
        self._unanswered += 1
        if not self._warned and not self._closed.is_set():
            self._warn(f"warning: {QUEUE_URL_VARIABLE} = {masked(url)}: {printable(masked(problem))}; the run goes on")
        self._warned = True
        return {}


class _Apart(threading.Thread, Generic[T]):
    """An action in a thread of its own, which is left to itself where it takes too long."""

    def __init__(self, action: Callable[[], T]) -> None:
        super().__init__(name="heartbeat apart", daemon=True)
        self._action, self._returned, self._problem = action, list[T](), ""
        self.start()

    def run(self) -> None:
        try:
            self._returned.append(self._action())
        except Exception as error:  # noqa: BLE001 - raised, without its sockets, where the result is asked for
            self._problem = str(error) or type(error).__name__

    def result(self, timeout_s: float) -> T:
        """What the action returns; OSError where it raised one or another, or is not done in time."""
        self.join(timeout_s)
        if self.is_alive():
            raise TimeoutError(f"no whole answer within {timeout_s:g} s")
        if not self._returned:
            raise OSError(self._problem)
        return self._returned[0]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Nobody else is shown who a run is: another address than that of the queue is an error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _post(request: urllib.request.Request, timeout_s: float) -> tuple[bytes, str]:
    """The content of the answer, and the proof that it is the queue's; each part may take `timeout_s`."""
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=timeout_s) as reply:
        return reply.read(MAX_ANSWER_BYTES), reply.headers.get("Dualview-Proof", "")


def _present(url: str) -> str:
    """The URL of the dispatcher that leads now, or the one that was given at the start."""
    try:
        now = Path(os.environ[TOKEN_FILE_VARIABLE] + URL_SUFFIX).read_text().strip()
    except (KeyError, OSError, ValueError):
        return url
    return now if is_url(now) else url


@dataclass(frozen=True)
class _Identity:
    """Which attempt this is, and how the queue shows that it is the queue, as files say that its user alone can read.

    Attributes:
        token: the attempt's id, a dot and a key; empty without a queue that asks for one.
        answer_key: the key of its answers; empty for a queue of an earlier version, which shows nothing.
        nonce: what tells this request from all others.
    """

    token: str
    answer_key: str
    nonce: str

    @classmethod
    def read(cls) -> "_Identity":
        file = os.environ.get(TOKEN_FILE_VARIABLE)
        if not file:
            return cls("", "", "")
        answer = Path(file + ANSWER_SUFFIX)
        key = answer.read_text().strip() if answer.exists() else ""
        return cls(Path(file).read_text().strip(), key, secrets.token_hex(16))

    def show(self, body: bytes) -> dict[str, str]:
        """The headers of a request."""
        if not self.answer_key:
            return {"Authorization": f"Bearer {self.token}"} if self.token else {}
        name, _, key = self.token.rpartition(".")
        return {"Authorization": f"HMAC {name}.{self._sign(key, body)}", "Dualview-Nonce": self.nonce}

    def check(self, content: bytes, proof: str) -> None:
        """Raise ValueError unless an answer is the queue's."""
        if self.answer_key and not hmac.compare_digest(self._sign(self.answer_key, content).encode(), proof.encode()):
            raise ValueError("the answer is not the queue's")

    def _sign(self, key: str, message: bytes) -> str:
        return hmac.new(key.encode(), f"{self.nonce}\n".encode() + message, hashlib.sha256).hexdigest()
