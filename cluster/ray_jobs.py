"""Ray Jobs, as the dispatcher sees it: start under a name that is taken only once, ask, stop, read.

Ray's history goes with its head, so its answers are evidence; the store is the truth.
"""

import logging
import os
import shlex
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.errors import RayUnavailableError, RefusedError
from cluster.spec import Bundle, Ending

REQUEST_TIMEOUT_S = 60.0
KNOCK_TIMEOUT_S = 10.0
STOP_WAIT_S = 120
MAX_NODES = 10_000
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_Answer = TypeVar("_Answer")
OPEN = (JobStatus.PENDING, JobStatus.RUNNING)
STATUSES = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.STOPPED: "stopped"}


class _Node(TypedDict):
    """What is read of a node in the answer of Ray's state API."""

    resources_total: Bundle


class _Client(JobSubmissionClient):
    """Ray's client, but with a limit on every request."""

    def _do_request(self, method: str, endpoint: str, **options: object) -> requests.Response:
        inherited = super()._do_request  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        send = cast("Callable[..., requests.Response]", inherited)  # Ray annotates its method only in part
        return send(method, endpoint, **{"timeout": REQUEST_TIMEOUT_S, **options})

    def nodes(self) -> list[_Node]:
        """Every live node, as `ray list nodes --detail` shows it."""
        alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        reply = self._do_request("GET", f"/api/v0/nodes?detail=1&limit={MAX_NODES}&{alive}")
        reply.raise_for_status()
        return reply.json()["data"]["result"]["result"]


class RayJobs:
    """The job server of one Ray cluster.

    Attributes:
        address: of its dashboard, `http://host:port`.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect to `http://host:port` of the dashboard; None finds it as `ray job submit` does.

        Raises:
            RayUnavailableError: nothing there answers as Ray does.
        """
        chosen = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
        self.address = chosen or "a local cluster"
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it tells of every upload
        if chosen:
            self._ask(lambda: _knock(chosen))
        try:
            with _alone(address):
                self._client: _Client = self._ask(lambda: _Client(address))
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # something answers, but not as Ray does
            raise RayUnavailableError(f"no Ray job server at {self.address}: {_line(error)}") from error
        self.address = self._client.get_address()

    def nodes(self) -> list[Bundle]:
        """The total resources of every live node."""
        return [row["resources_total"] for row in self._ask(lambda: self._client.nodes())]

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
        """Start a command in the unpacked snapshot; if the id is taken, it has been started before.

        Raises:
            RefusedError: Ray will not take it as it is.
            RayUnavailableError: no answer, or none that says so; it may have been started.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **environment}
        if not os.access(snapshot, os.R_OK):
            raise RefusedError(f"its code is not there, or not readable: {snapshot}")
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(snapshot), "env_vars": variables},
                )
            )
        except (RuntimeError, ValueError) as error:
            if self._info(submission_id) is not None:
                return
            if isinstance(error, ValueError) or "status code 400" in str(error):
                raise RefusedError(_line(error)) from error
            raise self._trouble(error) from error

    def ending(self, submission_id: str) -> Ending | None:
        """How an attempt ended; None while it runs; `lost` where Ray does not know it."""
        info = self._info(submission_id)
        if info is None:
            return Ending(status="lost")
        if info.status in OPEN:
            return None
        return Ending.model_validate(
            {"status": STATUSES[info.status], "exit_code": info.driver_exit_code, "message": _line(info.message or "")}
        )

    def stop(self, submission_id: str) -> None:
        """Ask for SIGTERM, and SIGKILL after STOP_WAIT_S seconds; returns at once, and may have come too early."""
        try:
            self._ask(lambda: self._client.stop_job(submission_id))
        except RuntimeError as error:
            raise self._trouble(error) from error

    def log(self, submission_id: str) -> str:
        """All output so far."""
        try:
            return self._ask(lambda: self._client.get_job_logs(submission_id))
        except RuntimeError as error:
            raise self._trouble(error) from error

    async def follow(self, submission_id: str) -> AsyncIterator[str]:
        """Output as it comes, from the beginning, until the attempt ends or its output cannot be had."""
        try:
            async for text in self._client.tail_job_logs(submission_id):
                yield text
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise self._trouble(error) from error

    def _info(self, submission_id: str) -> JobDetails | None:
        try:
            return self._ask(lambda: self._client.get_job_info(submission_id))
        except RuntimeError as error:
            # Ray's own words: anything may stand before it and answer 404
            if "status code 404" in str(error) and f"Job {submission_id} does not exist" in str(error):
                return None
            raise self._trouble(error) from error

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        try:
            return question()
        except (ConnectionError, TimeoutError, socket.gaierror, requests.RequestException, RayError) as error:
            raise RayUnavailableError(f"no Ray job server answers at {self.address}: {_line(error)}") from error

    def _trouble(self, error: Exception) -> RayUnavailableError:
        return RayUnavailableError(f"Ray's job server at {self.address} is in trouble: {_line(error)}")


def _knock(address: str) -> None:
    """See that somebody listens: Ray's own search knocks at a dead address for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if host and port:
        socket.create_connection((host, port), timeout=KNOCK_TIMEOUT_S).close()


@contextmanager
def _alone(address: str | None) -> Generator[None]:
    """Hide the variables that Ray prefers to an address that is given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if address and name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
