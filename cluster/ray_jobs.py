"""Ray Jobs, as the dispatcher sees it: start under a name that is taken only once, ask, stop, read.

Ray's history goes with its head, so its answers are evidence; the store is the truth.
"""

import logging
import os
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.errors import RayUnavailableError
from cluster.spec import Bundle, Ending

REQUEST_TIMEOUT_S = 60.0
STOP_WAIT_S = 120
_Answer = TypeVar("_Answer")
OPEN = (JobStatus.PENDING, JobStatus.RUNNING)
STATUSES = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.STOPPED: "stopped"}


class _Client(JobSubmissionClient):
    """Ray's client, but with a limit on every request."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:  # noqa: ANN401
        return super()._do_request(method, endpoint, **{"timeout": REQUEST_TIMEOUT_S, **options})

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's state API on its nodes, as `ray list nodes --detail` shows them."""
        reply = self._do_request("GET", "/api/v0/nodes?detail=1")
        reply.raise_for_status()
        return reply.json()["data"]["result"]["result"]


class RayJobs:
    """The job server of one Ray cluster."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to `http://host:port` of the dashboard; None finds it as `ray job submit` does.

        Raises:
            RayUnavailableError: nothing there answers as Ray does.
        """
        self.address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "local"
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it tells of every upload
        try:
            self._client: _Client = self._ask(lambda: _Client(address))
        except (RuntimeError, ValueError) as error:  # something answers, but not as Ray does
            raise RayUnavailableError(f"no Ray job server at {self.address}: {_line(error)}") from error

    def nodes(self) -> list[Bundle]:
        """The total resources of every live node."""
        rows = self._ask(lambda: self._client.nodes())
        return [row["resources_total"] for row in rows if row["state"] == "ALIVE"]

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
        """Start a command in the unpacked snapshot; if the id is taken, it has been started before.

        Raises:
            RuntimeError: Ray refuses it.
            RayUnavailableError: no answer; it may have been started.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **environment}
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(snapshot), "env_vars": variables},
                )
            )
        except RuntimeError:
            if not self.knows(submission_id):
                raise

    def knows(self, submission_id: str) -> bool:
        """Whether Ray has this submission, in whatever state."""
        return self._info(submission_id) is not None

    def ending(self, submission_id: str) -> Ending | None:
        """How an attempt ended; None while it runs; `lost` where Ray does not know it."""
        info = self._info(submission_id)
        if info is None:
            return Ending(status="lost")
        if info.status in OPEN:
            return None
        message = " ".join((info.message or "").split())[:500]
        return Ending.model_validate(
            {"status": STATUSES[info.status], "exit_code": info.driver_exit_code, "message": message}
        )

    def stop(self, submission_id: str) -> None:
        """Ask for SIGTERM, and SIGKILL after STOP_WAIT_S seconds; returns at once."""
        self._ask(lambda: self._client.stop_job(submission_id))

    def log(self, submission_id: str) -> str:
        """All output so far.

        Raises:
            RuntimeError: it is gone, as when the node of the command is.
        """
        return self._ask(lambda: self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str) -> AsyncIterator[str]:
        """Output as it comes, from the beginning, until the attempt ends."""
        return self._client.tail_job_logs(submission_id)

    def _info(self, submission_id: str) -> Any:  # noqa: ANN401 - ray's JobDetails
        try:
            return self._ask(lambda: self._client.get_job_info(submission_id))
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise RayUnavailableError(f"Ray's job server at {self.address} is in trouble: {_line(error)}") from error

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        try:
            return question()
        except (OSError, requests.RequestException, AuthenticationError) as error:
            raise RayUnavailableError(f"no Ray job server answers at {self.address}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
