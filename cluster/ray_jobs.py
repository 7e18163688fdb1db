"""Ray's job API as the dispatcher uses it: submit under an id that is accepted once, query, stop, read the output.

Ray loses its history with its head node, so its answers are evidence; the store is the record.
"""

import logging
import os
import shlex
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator
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
CONNECT_TIMEOUT_S = 10.0
STOP_GRACE_S = 120
MAX_NODES = 10_000
MAX_MESSAGE = 300
LOG_PART_BYTES = 2**20
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_Result = TypeVar("_Result")
UNFINISHED_STATUSES = (JobStatus.PENDING, JobStatus.RUNNING)
ENDING_STATUSES = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.STOPPED: "stopped"}


class _Node(TypedDict):
    """The fields used of a node in the answer of Ray's state API."""

    resources_total: Bundle


class _Client(JobSubmissionClient):
    """Ray's client with a timeout on every request."""

    def _do_request(self, method: str, endpoint: str, **options: object) -> requests.Response:
        inherited = super()._do_request  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        send = cast("Callable[..., requests.Response]", inherited)  # Ray annotates its method only in part
        return send(method, endpoint, **{"timeout": REQUEST_TIMEOUT_S, **options})

    def open_log(self, node: str, submission_id: str) -> requests.Response:
        """The output of a job, as `ray logs` reads a file of a node; to be read in parts and closed."""
        whole = f"node_id={node}&filename=job-driver-{submission_id}.log&lines=-1&timeout={int(REQUEST_TIMEOUT_S)}"
        return self._do_request("GET", f"/api/v0/logs/file?{whole}", stream=True)

    def nodes(self) -> list[_Node]:
        """Every live node, as `ray list nodes --detail` shows it."""
        alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        reply = self._do_request("GET", f"/api/v0/nodes?detail=1&limit={MAX_NODES}&{alive}")
        reply.raise_for_status()
        return reply.json()["data"]["result"]["result"]


class RayJobs:
    """The job server of one Ray cluster.

    Attributes:
        address: `http://host:port` of its dashboard.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect to a dashboard at `http://host:port`; None finds it as `ray job submit` does.

        Raises:
            RayUnavailableError: no Ray job server answers there.
        """
        chosen = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
        self.address = chosen or "a local cluster"
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it logs every upload
        if chosen:
            self._call(lambda: _check_listening(chosen))
        try:
            with _only_given_address(address):
                self._client: _Client = self._call(lambda: _Client(address))
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # something answers, but it is not Ray
            raise RayUnavailableError(f"no Ray job server at {self.address}: {_one_line(error)}") from error
        self.address = self._client.get_address()

    def nodes(self) -> list[Bundle]:
        """Each live node's total resources."""
        return [row["resources_total"] for row in self._call(lambda: self._client.nodes())]

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
        """Start a command in the unpacked snapshot; an id that Ray knows already has been started, and is left alone.

        Raises:
            RefusedError: Ray rejects the job, or the snapshot is not readable.
            RayUnavailableError: no clear answer; the command may have been started.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **environment}
        if not os.access(snapshot, os.R_OK):
            raise RefusedError(f"its code snapshot is missing or not readable: {snapshot}")
        try:
            self._call(
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
                raise RefusedError(_one_line(error)) from error
            raise self._server_error(error) from error

    def ending(self, submission_id: str) -> Ending | None:
        """How an attempt ended; None while it runs; `lost` where Ray does not know it."""
        info = self._info(submission_id)
        if info is None:
            return Ending(status="lost")
        if info.status in UNFINISHED_STATUSES:
            return None
        return Ending.model_validate(
            {
                "status": ENDING_STATUSES[info.status],
                "exit_code": info.driver_exit_code,
                "message": _cause(info.message or ""),
            }
        )

    def stop(self, submission_id: str) -> None:
        """Ask Ray to send SIGTERM, and SIGKILL after STOP_GRACE_S seconds; returns at once.

        Without effect while the attempt is starting.
        """
        try:
            self._call(lambda: self._client.stop_job(submission_id))
        except RuntimeError as error:
            raise self._server_error(error) from error

    def log(self, submission_id: str) -> Iterator[bytes]:
        """All output of an attempt so far, in parts, as the bytes that it wrote.

        It is the file that the attempt's node keeps: Ray's job API would hand it out as one text, and fails where it is
        not UTF-8.

        Raises:
            RayUnavailableError: the output cannot be fetched.
        """
        info = self._info(submission_id)
        node = info.driver_node_id if info else None
        if node is None:  # it has not come to a node
            return
        try:
            with self._call(lambda: self._client.open_log(node, submission_id)) as reply:
                if not reply.ok:
                    raise self._server_error(RuntimeError(f"status code {reply.status_code}: {reply.text}"))
                yield from reply.iter_content(LOG_PART_BYTES)
        except requests.RequestException as error:
            raise self._server_error(error) from error

    async def follow(self, submission_id: str) -> AsyncIterator[str]:
        """Output as it is written, from the beginning, until the attempt ends.

        Raises:
            RayUnavailableError: the output cannot be fetched.
        """
        try:
            async for text in self._client.tail_job_logs(submission_id):
                yield text
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise self._server_error(error) from error

    def _info(self, submission_id: str) -> JobDetails | None:
        try:
            return self._call(lambda: self._client.get_job_info(submission_id))
        except RuntimeError as error:
            # Ray's own message: a proxy in front of it may answer 404 too
            if "status code 404" in str(error) and f"Job {submission_id} does not exist" in str(error):
                return None
            raise self._server_error(error) from error

    def _call(self, request: Callable[[], _Result]) -> _Result:
        try:
            return request()
        except (ConnectionError, TimeoutError, socket.gaierror, requests.RequestException, RayError) as error:
            raise RayUnavailableError(f"no Ray job server answers at {self.address}: {_one_line(error)}") from error

    def _server_error(self, error: Exception) -> RayUnavailableError:
        return RayUnavailableError(f"Ray's job server at {self.address} failed: {_one_line(error)}")


def _check_listening(address: str) -> None:
    """Raise OSError unless something listens at the address: Ray itself would retry a dead one for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if host and port:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _only_given_address(address: str | None) -> Generator[None]:
    """With an address given, hide the environment variables that Ray would prefer to it."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if address and name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


def _cause(message: str) -> str:
    """A message on one line; of a long one its end, which in a traceback is the cause."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE else f"…{text[-MAX_MESSAGE:]}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:MAX_MESSAGE]
