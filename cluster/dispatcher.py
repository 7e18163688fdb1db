"""The dispatcher: reconciles the store's record with what Ray runs, one pass at a time.

It keeps no essential state in memory. A pass asks Ray about the open attempts, updates their jobs, and starts at most
one job: it commits the attempt, submits it to Ray, then records that Ray has accepted it. If the dispatcher is killed
between any two of these, the next pass finds the open attempt, asks Ray, and submits it again only if Ray does not know
its submission id.
"""

import fcntl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cluster import durable
from cluster.admission import Waiting, decide
from cluster.errors import InputError, RayUnavailableError, RefusedError, StoreUnavailableError
from cluster.snapshot import archive_path
from cluster.spec import Bundle, Ending
from cluster.store import Store
from cluster.tables import Attempt

MAX_RETRY_WAIT_S = 30.0


class JobServer(Protocol):
    """What the dispatcher asks of Ray; see `cluster.ray_jobs.RayJobs`."""

    def nodes(self) -> list[Bundle]:
        """The total resources of every live node."""
        ...

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
        """Start a command under an id that Ray accepts only once; RefusedError if Ray rejects the job."""
        ...

    def ending(self, submission_id: str) -> Ending | None:
        """How an attempt ended; None while it runs."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop an attempt."""
        ...

    def log(self, submission_id: str) -> Iterable[bytes]:
        """All output of an attempt so far, in parts."""
        ...


class Dispatcher:
    """Runs the jobs of one queue on one Ray cluster."""

    def __init__(self, store: Store, server: JobServer, report: Callable[[str], None]) -> None:
        """Starts nothing by itself: call `run` or `step`. `report` receives a line to print for every event."""
        self._store, self._server, self._report = store, server, report
        self._reported_stopping: set[str] = set()

    def run(self, poll_s: float, drain: bool, stop: threading.Event) -> None:
        """Step until `stop` is set or, with `drain`, no job waits or runs; retries while Ray or the store fails."""
        wait, problem = poll_s, ""
        while not stop.is_set():
            try:
                if problem:
                    self._explain_waiting(problem)
                self.step()
                if problem:
                    self._report("Ray and the queue's database are available again")
                wait, problem = poll_s, ""
                if drain and not self._store.jobs("queued", "running"):
                    return
            except (RayUnavailableError, StoreUnavailableError) as error:
                if not problem:
                    self._report(f"{error}; trying again")
                wait, problem = min(2 * wait, MAX_RETRY_WAIT_S), str(error)
            stop.wait(wait)

    def step(self) -> None:
        """One pass: update the open attempts, then start the next job if none is open.

        Raises:
            RayUnavailableError: Ray does not answer; the next pass resumes from what the store records.
        """
        for attempt in self._store.attempts():
            self._follow(attempt)
        queued = self._store.jobs("queued")
        waiting = [Waiting(job.id, job.priority, job.gangs, job.held_until) for job in queued]
        if not waiting:
            return
        running = [attempt.job_id for attempt in self._store.attempts()]
        decisions = decide(waiting, running, self._server.nodes(), time.time())
        self._store.explain({decision.job: decision.reason for decision in decisions})
        for decision in decisions:
            attempt = self._store.begin_attempt(decision.job) if decision.admitted else None
            if attempt is not None:
                self._report(f"job {decision.job} starts (attempt {attempt.number})")
                self._submit(attempt)

    def _follow(self, attempt: Attempt) -> None:
        job = self._store.job(attempt.job_id)
        ending = self._server.ending(attempt.submission_id)
        if ending is None:
            if not attempt.confirmed:
                self._store.confirm(attempt)
            if job.cancel_requested:
                self._stop(attempt)
        elif ending.status == "lost" and not attempt.confirmed:
            self._submit(attempt)
        else:
            self._close(attempt, ending)

    def _stop(self, attempt: Attempt) -> None:
        """Ask Ray to stop the attempt, in every pass: Ray loses a request that comes while the attempt is starting."""
        self._server.stop(attempt.submission_id)
        if attempt.submission_id not in self._reported_stopping:
            self._reported_stopping.add(attempt.submission_id)
            self._report(f"job {attempt.job_id} is being stopped")

    def _submit(self, attempt: Attempt) -> None:
        job = self._store.job(attempt.job_id)
        if job.cancel_requested:
            self._close(attempt, Ending(status="lost"))
            return
        archive = archive_path(self._store.snapshots, job.snapshot)
        environment = {**job.environment, "DUALVIEW_JOB": str(job.id)}
        try:
            self._server.submit(attempt.submission_id, job.command, archive, environment)
        except RefusedError as error:
            self._close(attempt, Ending(status="refused", message=str(error)))
            return
        self._store.confirm(attempt)

    def _close(self, attempt: Attempt, ending: Ending) -> None:
        if ending.status not in ("lost", "refused"):
            self._keep_log(attempt)
        job = self._store.end_attempt(attempt, ending)
        self._report(f"job {job.id} {job.state}: {job.reason}")

    def _keep_log(self, attempt: Attempt) -> None:
        """Copy the attempt's output, which is lost with Ray's head, before the store records that it has ended.

        An output that cannot be fetched or written does not keep the job from ending.
        """
        target = self._store.log(attempt)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            durable.write_parts(target, self._output(attempt))
        except OSError as error:
            self._report(f"the output of {attempt.submission_id} could not be saved: {error}")

    def _output(self, attempt: Attempt) -> Iterator[bytes]:
        try:
            yield from self._server.log(attempt.submission_id)
        except RayUnavailableError as error:
            yield f"(the output could not be fetched: {error})\n".encode()

    def _explain_waiting(self, reason: str) -> None:
        self._store.explain({job.id: reason for job in self._store.jobs("queued")})


@contextmanager
def dispatcher_lock(store: Store) -> Generator[None]:
    """Hold the queue's dispatcher lock, which the system releases however the process ends.

    Raises:
        InputError: another dispatcher holds it, or the queue's folder is not writable.
    """
    try:
        file = store.lock.open("a+")
    except OSError as error:
        raise InputError(f"{store.lock}: {error.strerror}; allowed: a queue in a writable folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another dispatcher serves the queue {store.file}; allowed: one") from None
        yield


def has_dispatcher(store: Store) -> bool:
    """Whether a dispatcher is running for the queue on this machine."""
    try:
        with store.lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
