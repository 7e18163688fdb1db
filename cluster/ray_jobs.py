"""Ray's job API as the dispatcher uses it: submit under an id that is accepted once, query, stop, read the output.

Ray loses its history with its head node, so its answers are evidence; the store is the record.
"""

import logging
import os
import re
import shlex
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster import keeper as keeper_module
from cluster.errors import FilesUnavailableError, RayFailedError, RayUnavailableError, RefusedError
from cluster.files import digest
from cluster.placement import Node
from cluster.resources import NODE_LABEL, Bundle
from cluster.snapshot import MAX_SNAPSHOT_BYTES
from cluster.spec import Alive, Ending

REQUEST_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
STOP_GRACE_S = 120
MAX_ROWS = 10_000  # the most that Ray's state API gives
MAX_MESSAGE = 300
USUAL_MESSAGES = ("Job has not started yet", "Job is currently running")
LOG_PART_BYTES = 2**20
LINGER_S = 30.0
KEEP_VARIABLE = "DUALVIEW_KEEP"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_Result = TypeVar("_Result")
SUPERVISOR_PREFIX = "_ray_internal_job_actor_"  # and the submission id: the actor that runs a job's command
Usage = Mapping[str, Mapping[str, float]]  # node -> resource -> amount
ENDING_STATUSES = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.STOPPED: "stopped"}


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

    def rows(self, kind: str, **filters: str) -> list[dict[str, Any]]:
        """What `ray list KIND --detail` shows."""
        chosen = "".join(
            f"&filter_keys={key}&filter_predicates=%3D&filter_values={quote(value)}" for key, value in filters.items()
        )
        reply = self._do_request("GET", f"/api/v0/{kind}?detail=1&limit={MAX_ROWS}{chosen}")
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
        self.address = _without_password(chosen or "a local cluster")
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it logs every upload
        if chosen:
            self._call(lambda: _check_listening(chosen))
        try:
            with _only_given_address(address):
                self._client: _Client = self._call(lambda: _Client(address))
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # something answers, but it is not Ray
            raise RayUnavailableError(f"no Ray job server at {self.address}: {_one_line(error)}") from error
        self.address = _without_password(self._client.get_address())
        self._jobs: defaultdict[str, set[str]] = defaultdict(set)  # submission id -> Ray's ids of its drivers
        self._checked: dict[Path, tuple[int, ...]] = {}  # archives that have the content they should
        self._ended: dict[str, float] = {}  # submission id -> since when it is not open any more

    def nodes(self, ours: Collection[str]) -> tuple[list[Node], dict[str, Usage]]:
        """The live nodes with what others than the queue hold; and what each open attempt of the queue holds.

        Held are the bundles of placement groups, the actors outside of them and the running tasks outside of them.

        Args:
            ours: submission ids of the queue's open attempts.
        """
        rows = self._call(lambda: self._client.rows("nodes", state="ALIVE"))
        ended = self._just_ended(ours)
        known = {job: submission for submission in (*ours, *ended) for job in self._jobs[submission]}
        attempts: dict[str, dict[str, defaultdict[str, float]]] = {each: {} for each in ours}
        others: dict[str, defaultdict[str, float]] = {}
        for job, name, node, resources in self._holdings():
            attempt = name.removeprefix(SUPERVISOR_PREFIX) if name.startswith(SUPERVISOR_PREFIX) else known.get(job)
            if attempt in ended:
                continue
            holder = others if attempt is None else attempts.get(attempt, others)
            for resource, amount in resources.items():
                holder.setdefault(node, defaultdict(float))[resource] += amount
        nodes = [
            Node(
                row["node_id"],
                row["resources_total"],
                others.get(row["node_id"], {}),
                {**row["labels"], NODE_LABEL: row["node_id"]},
                row["node_name"],
                row["node_ip"],
            )
            for row in sorted(rows, key=lambda row: (row["node_name"], row["node_id"]))
        ]
        return nodes, dict(attempts)

    def _just_ended(self, ours: Collection[str]) -> set[str]:
        """The attempts that ended a moment ago, whose last processes are about to give back what they hold."""
        now = time.monotonic()
        for submission in set(self._jobs) - set(ours):
            if now - self._ended.setdefault(submission, now) > LINGER_S:  # what it has left behind is others' by now
                del self._jobs[submission], self._ended[submission]
        for submission in ours:
            self._ended.pop(submission, None)
        return set(self._ended)

    def _holdings(self) -> Iterator[tuple[str, str, str, dict[str, float]]]:
        """Whatever holds resources: Ray's id of its job, its name, the node, and what it holds there."""
        for group in self._call(lambda: self._client.rows("placement_groups")):
            for bundle in group["bundles"] if group["state"] != "REMOVED" else ():
                if bundle["node_id"]:
                    yield group["creator_job_id"], "", bundle["node_id"], bundle["unit_resources"]
        actors = self._call(lambda: self._client.rows("actors", state="ALIVE"))
        tasks = self._call(lambda: self._client.rows("tasks", state="RUNNING", type="NORMAL_TASK"))
        for row in (*actors, *tasks):
            if not row["placement_group_id"] and row["node_id"]:
                yield row["job_id"], row["name"] or "", row["node_id"], row["required_resources"] or {}

    def submit(
        self,
        submission_id: str,
        command: list[str],
        snapshot: Path,
        environment: dict[str, str],
        driver: Bundle | None = None,
        node: str | None = None,
    ) -> None:
        """Start a command in the unpacked snapshot; an id that Ray knows already has been started, and is left alone.

        Args:
            submission_id: an id that Ray accepts once.
            command: the command and its arguments.
            snapshot: the archive.
            environment: environment variables.
            driver: what the command itself takes; None for nothing, on the head.
            node: id of the node that it runs on; None for any that has room.

        Raises:
            RefusedError: Ray rejects the job, or the snapshot is gone or was altered.
            FilesUnavailableError: the snapshot cannot be read now.
            RayUnavailableError: no clear answer; the command may have been started.
        """
        line, keeping = kept(command)
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **keeping, **environment}
        amounts = dict(driver.resources) if driver else {}
        memory, cpus, gpus = (amounts.pop(name, None) for name in ("memory", "CPU", "GPU"))
        self._check(snapshot)
        try:
            self._call(
                lambda: self._client.submit_job(
                    entrypoint=line,
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(snapshot), "env_vars": variables},
                    entrypoint_num_cpus=cpus,
                    entrypoint_num_gpus=gpus,
                    entrypoint_memory=None if memory is None else int(memory),
                    entrypoint_resources=amounts or None,
                    entrypoint_label_selector={NODE_LABEL: node} if node else None,
                )
            )
        except (RuntimeError, ValueError) as error:
            if self._info(submission_id) is not None:
                return
            if isinstance(error, ValueError) or re.search(r"status code (400|413)", str(error)):
                raise RefusedError(_one_line(error)) from error
            raise self._server_error(error) from error

    def _check(self, snapshot: Path) -> None:
        """Look once at each archive.

        Raises:
            RefusedError: it is gone, or has not the digest that names it.
            FilesUnavailableError: it cannot be read now.
        """
        try:
            status = snapshot.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)  # ctime cannot be put back
            if self._checked.get(snapshot) != seen:
                if status.st_size > MAX_SNAPSHOT_BYTES or digest(snapshot) != snapshot.stem:
                    raise RefusedError(f"its code snapshot was altered since it was submitted: {snapshot}")
                self._checked[snapshot] = seen
        except OSError as error:
            if isinstance(error, FileNotFoundError) and snapshot.parent.is_dir():
                raise RefusedError(f"its code snapshot is missing: {snapshot}") from None
            raise FilesUnavailableError(f"its code snapshot cannot be read: {snapshot}: {error.strerror}") from error

    def look(self, submission_id: str) -> Alive | Ending:
        """What an attempt does, or how it ended: `lost` where Ray does not know it."""
        info = self._info(submission_id)
        if info is None:
            return Ending(status="lost")
        if info.status in (JobStatus.PENDING, JobStatus.RUNNING):
            if info.job_id:
                self._jobs[submission_id].add(info.job_id)  # Ray gives that of its last driver
            usual = (info.message or "").startswith(USUAL_MESSAGES)
            return Alive(started=info.status == JobStatus.RUNNING, message="" if usual else _cause(info.message or ""))
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

    def _server_error(self, error: Exception) -> RayFailedError:
        return RayFailedError(f"Ray's job server at {self.address} failed: {_one_line(error)}")


def kept(command: list[str]) -> tuple[str, dict[str, str]]:
    """A command that ends what it leaves behind, as a line of a shell and the variables that the line needs.

    Where a node has no Python that can, the command runs by itself.
    """
    keeper = shlex.quote(Path(keeper_module.__file__).read_text())
    can = "python3 -ISc 'import ctypes' 2>/dev/null"
    script = f'unset {KEEP_VARIABLE}; {can} && exec python3 -ISc {keeper} "$@"; exec "$@"'
    return f'exec sh -c "${KEEP_VARIABLE}" sh {shlex.join(command)}', {KEEP_VARIABLE: script}


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
    return _without_password(" ".join(str(error).split()))[:MAX_MESSAGE]


def _without_password(text: str) -> str:
    """An address without what is before a host's name: it is recorded, and shown to everybody."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
