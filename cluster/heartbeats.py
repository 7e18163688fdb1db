"""The server that running jobs send heartbeats to: it hears how far they are, and answers whether to leave.

Beside them it shows Prometheus how many jobs wait, and why.

It runs in a thread of the dispatcher, and only remembers: the dispatcher records what was heard, and says what to
answer, once in each pass. An attempt shows that it is itself with a token, which it reads from a file that the queue's
user alone can read. Ray shows a job's environment to everybody, so that only names the file.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import ValidationError
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster import durable
from cluster.errors import FilesUnavailableError, InputError
from cluster.secrets import TOKENS
from cluster.spec import Beat

URL_VARIABLE = "DUALVIEW_QUEUE_URL"
TOKEN_FILE_VARIABLE = "DUALVIEW_QUEUE_TOKEN_FILE"  # noqa: S105 - the name of a variable
URL_SUFFIX = ".url"  # of the file beside that one which holds the URL of the dispatcher that leads now
ANSWER_SUFFIX = ".answer"  # of the one with what the queue shows itself with, which is never sent
MAX_BODY_BYTES = 2**16
MAX_HEAD_BYTES = 2**14
MAX_CONNECTIONS, CONNECTION_S = 256, 15.0  # at once, and how long one lasts


class Tokens:
    """What attempts show themselves with: their id and what only the queue's key makes of it.

    Attributes:
        port_file: the file that holds the port of heartbeats.
    """

    def __init__(self, anchor: Path) -> None:
        """Make the key if there is none; it and the tokens are beside `Store.anchor`.

        Raises:
            InputError: it cannot be read or written, or may be somebody else's.
        """
        self._folder = anchor.with_name(TOKENS)
        self.port_file = anchor.with_name(f"{anchor.name}.port")
        file = anchor.with_name(f"{anchor.name}.key")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                _write_private(file, secrets.token_hex(32))
            os.close(durable.open_own(self._folder))
            with os.fdopen(durable.open_own(file), "rb") as own:
                self._key = own.read()
        except OSError as error:
            raise InputError(
                f"{error.filename or file}: {error.strerror}; allowed: a queue in a writable folder"
            ) from None

    def write(self, submission_id: str, url: str) -> Path:
        """The file with an attempt's token; beside it are those that say where heartbeats go now, and who answers.

        Raises:
            FilesUnavailableError: they cannot be written now.
        """
        path = self._folder / submission_id
        told = path.with_name(path.name + URL_SUFFIX)
        try:
            with suppress(FileExistsError):
                _write_private(path, f"{submission_id}.{self._sign(submission_id)}")
            with suppress(FileExistsError):
                _write_private(path.with_name(path.name + ANSWER_SUFFIX), self._sign(submission_id + ANSWER_SUFFIX))
            if not told.exists() or told.read_text() != url:
                durable.write_parts(told, [url.encode()])
        except OSError as error:
            raise FilesUnavailableError(f"{error.filename or path}: {error.strerror}") from error
        return path

    def remove(self, submission_id: str) -> None:
        """Remove an attempt's token; what cannot be removed now is by `keep_only` later."""
        with suppress(OSError):
            for name in (submission_id, submission_id + URL_SUFFIX, submission_id + ANSWER_SUFFIX):
                (self._folder / name).unlink(missing_ok=True)

    def keep_only(self, submission_ids: Iterable[str], url: str) -> None:
        """Have tokens for these attempts, which say where to send heartbeats now, and for no others.

        Others are those of a dispatcher that was killed, or that lost the lead while it wrote them.
        """
        kept = set(submission_ids)
        for name in kept:
            self.write(name, url)
        with suppress(OSError):
            there = {path.name for path in self._folder.iterdir()}
            for name in {name.removesuffix(URL_SUFFIX).removesuffix(ANSWER_SUFFIX) for name in there} - kept:
                self.remove(name)

    def holder(self, authorization: str, message: bytes) -> str | None:
        """The attempt that a request is of; None if it is none of this queue's.

        Args:
            authorization: its header: `Bearer` with the token, or `HMAC` with the token's id and, in place of what
                follows it, the HMAC of the message with that as the key.
            message: the request's nonce, an end of a line, and its body.
        """
        kind, _, shown = authorization.partition(" ")
        submission_id, _, given = shown.strip().rpartition(".")
        signature = self._sign(submission_id)
        expected = _hmac(signature, message) if kind == "HMAC" else signature
        good = hmac.compare_digest(given.encode(), expected.encode())
        return submission_id if good and submission_id and kind in ("HMAC", "Bearer") else None

    def prove(self, submission_id: str, message: bytes) -> str:
        """What shows an attempt that an answer is the queue's: the nonce of its request, an end of a line, the body."""
        return _hmac(self._sign(submission_id + ANSWER_SUFFIX), message)

    def _sign(self, submission_id: str) -> str:
        return _hmac(self._key, submission_id.encode())


class HeartbeatServer:
    """Listens while used as a context manager.

    Attributes:
        url: where heartbeats go.
        loopback: whether only this machine can reach it.
    """

    def __init__(self, tokens: Tokens, host: str) -> None:
        """Take a port, the one of the dispatcher before if it is free, since running jobs know that one.

        Args:
            tokens: the queue's.
            host: the address to listen at, which the jobs can reach.

        Raises:
            InputError: nothing can listen at the address.
        """
        self._tokens, self._lock = tokens, threading.Lock()
        self.loopback = host == "::1" or host.startswith("127.")
        self._beats: dict[str, Beat] = {}
        self._served: set[str] = set()
        self._leave: Mapping[str, str] = {}
        self._registry = CollectorRegistry()
        self._gauges = {
            "waiting": Gauge("dualview_queue_waiting", "Jobs that wait", ("queue", "code"), registry=self._registry),
            "running": Gauge("dualview_queue_running", "Jobs that run", ("queue", "state"), registry=self._registry),
        }
        self._socket = _listen(host, tokens.port_file)
        port = self._socket.getsockname()[1]
        durable.write_parts(tokens.port_file, [str(port).encode()])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/heartbeat"
        config = uvicorn.Config(
            self._app(), http=_Connection, ws="none", lifespan="off", h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_level="error", access_log=False,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # the dispatcher has its own
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="heartbeats", daemon=True)

    def __enter__(self) -> "HeartbeatServer":
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no longer."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def environment(self, submission_id: str) -> dict[str, str]:
        """The variables that an attempt finds the server by."""
        with self._lock:
            self._served.add(submission_id)
        return {URL_VARIABLE: self.url, TOKEN_FILE_VARIABLE: str(self._tokens.write(submission_id, self.url))}

    def serve(self, submission_ids: Iterable[str]) -> None:
        """Be the one that these attempts, and no others, send heartbeats to.

        Raises:
            FilesUnavailableError: they cannot be told now.
        """
        served = set(submission_ids)
        with self._lock:
            self._served = served
        self._tokens.keep_only(served, self.url)

    def forget(self, submission_id: str) -> None:
        """An attempt has ended."""
        self._tokens.remove(submission_id)
        with self._lock:
            self._served.discard(submission_id)
            self._beats.pop(submission_id, None)

    def heard(self) -> dict[str, Beat]:
        """The newest heartbeat of each attempt."""
        with self._lock:
            return dict(self._beats)

    def answer(self, leave: Mapping[str, str]) -> None:
        """Ask these attempts to leave, from now on: submission id -> why."""
        self._leave = dict(leave)

    def measure(self, kind: str, counts: Mapping[tuple[str, str], int]) -> None:
        """Show at /metrics how many jobs wait, (queue, code) -> number, or run, (queue, state) -> number."""
        self._gauges[kind].clear()
        for labels, number in counts.items():
            self._gauges[kind].labels(*labels).set(number)

    def _app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/metrics")
        async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

        @app.post("/heartbeat")
        async def heartbeat(  # pyright: ignore[reportUnusedFunction]
            request: Request,
            authorization: Annotated[str, Header()] = "",
            dualview_nonce: Annotated[str, Header()] = "",
        ) -> Response:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"more than {MAX_BODY_BYTES} bytes")
            nonce = f"{dualview_nonce}\n".encode()
            holder = self._tokens.holder(authorization, nonce + body)
            if holder is None:
                raise HTTPException(401, "a token of this queue is needed")
            answer = self._hear(holder, body)
            answer.headers["Dualview-Proof"] = self._tokens.prove(holder, nonce + bytes(answer.body))
            return answer

        return app

    def _hear(self, submission_id: str, body: bytes) -> Response:
        try:
            beat = Beat.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(422, "not a heartbeat") from error
        with self._lock:
            if submission_id not in self._served:
                raise HTTPException(410, "this attempt has ended")
            self._beats[submission_id] = beat.model_copy(update={"at": time.time()})
        reason = self._leave.get(submission_id)
        return JSONResponse({"preempt": False} if reason is None else {"preempt": True, "reason": reason})


class _Connection(H11Protocol):
    """A connection that ends after CONNECTION_S: anybody can connect, and a heartbeat takes milliseconds.

    Where there are more than MAX_CONNECTIONS the oldest ends.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.ends = self.loop.call_later(CONNECTION_S, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            oldest = min((each for each in self.connections if isinstance(each, _Connection)), key=_ends_at)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.cancel()
        super().connection_lost(exc)


def _ends_at(connection: _Connection) -> float:
    return connection.ends.when()


def check_host(host: str) -> None:
    """Raise InputError unless something can listen at an address."""
    _listen(host, Path(os.devnull)).close()


def reachable_host(address: str) -> str:
    """The address of this machine that a cluster can reach: the one that it reaches the cluster's dashboard from."""
    parts = urlsplit(address)
    try:
        family = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family[0], socket.SOCK_DGRAM) as probe:
            probe.connect(family[4])
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _listen(host: str, remembered: Path) -> socket.socket:
    try:
        before = int(remembered.read_text())
    except (OSError, ValueError):
        before = 0
    for port in (before, 0):
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            problem = error
    raise InputError(f"--listen {host}: {problem}; allowed: an address of this machine that the jobs can reach")


def _hmac(key: str | bytes, message: bytes) -> str:
    return hmac.new(key.encode() if isinstance(key, str) else key, message, hashlib.sha256).hexdigest()


def _write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone can read, whole or not at all.

    Raises:
        FileExistsError: there is one.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
