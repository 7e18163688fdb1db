"""The dispatcher: brings what Ray does and what the store says together, one step at a time.

It keeps nothing in memory that matters. Every pass asks Ray about the open attempts, moves jobs on, and starts at most
one: the attempt is committed, then Ray is told, then the store hears that Ray has it. Killed between any two of these,
the next pass finds the open attempt, asks Ray, and hands it over again only if Ray has never heard of its name.
"""

import fcntl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cluster import durable
from cluster.admission import Waiting, decide
from cluster.errors import InputError, RayUnavailableError, RefusedError, StoreUnavailableError
from cluster.snapshot import path as snapshot_path
from cluster.spec import Bundle, Ending
from cluster.store import Store
from cluster.tables import Attempt

RETRY_LIMIT_S = 30.0


class Jobs(Protocol):
    """What the dispatcher asks of Ray; see `cluster.ray_jobs.RayJobs`."""

    def nodes(self) -> list[Bundle]:
        """The total resources of every live node."""
        ...

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
        """Start a command under a name that is taken only once; RefusedError if Ray will not take it."""
        ...

    def ending(self, submission_id: str) -> Ending | None:
        """How an attempt ended; None while it runs."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask for an attempt's end."""
        ...

    def log(self, submission_id: str) -> str:
        """All output so far."""
        ...


class Dispatcher:
    """One queue on one cluster."""

    def __init__(self, store: Store, jobs: Jobs, say: Callable[[str], None]) -> None:
        """Nothing happens before `step`; `say` takes a line for people about everything that happens."""
        self._store, self._jobs, self._say = store, jobs, say
        self._said_stopping: set[str] = set()

    def run(self, poll_s: float, drain: bool, stop: threading.Event) -> None:
        """Step until `stop` is set or, with `drain`, no job waits or runs; outlives a Ray or a store in trouble."""
        wait, trouble = poll_s, ""
        while not stop.is_set():
            try:
                if trouble:
                    self._explain_all(trouble)
                self.step()
                if trouble:
                    self._say("all is well again")
                wait, trouble = poll_s, ""
                if drain and not self._store.jobs("queued", "running"):
                    return
            except (RayUnavailableError, StoreUnavailableError) as error:
                if not trouble:
                    self._say(f"{error}; trying again")
                wait, trouble = min(2 * wait, RETRY_LIMIT_S), str(error)
            stop.wait(wait)

    def step(self) -> None:
        """One pass: follow what is open, then start the next job if nothing is.

        Raises:
            RayUnavailableError: Ray does not answer; the next pass goes on from what the store says.
        """
        for attempt in self._store.attempts():
            self._follow(attempt)
        queued = self._store.jobs("queued")
        waiting = [Waiting(job.id, job.priority, job.gangs, job.held_until) for job in queued]
        if not waiting:
            return
        running = [attempt.job_id for attempt in self._store.attempts()]
        decisions = decide(waiting, running, self._jobs.nodes(), time.time())
        self._store.explain({decision.job: decision.reason for decision in decisions})
        for decision in decisions:
            attempt = self._store.begin_attempt(decision.job) if decision.admitted else None
            if attempt is not None:
                self._say(f"job {decision.job} starts (attempt {attempt.number})")
                self._hand_over(attempt)

    def _follow(self, attempt: Attempt) -> None:
        job = self._store.job(attempt.job_id)
        ending = self._jobs.ending(attempt.submission_id)
        if ending is None:
            if not attempt.confirmed:
                self._store.confirm(attempt)
            if job.cancel_requested:
                self._stop(attempt)
        elif ending.status == "lost" and not attempt.confirmed:
            self._hand_over(attempt)
        else:
            self._close(attempt, ending)

    def _stop(self, attempt: Attempt) -> None:
        """Ask for the attempt's end, in every pass: Ray forgets a request that comes while it is still starting it."""
        self._jobs.stop(attempt.submission_id)
        if attempt.submission_id not in self._said_stopping:
            self._said_stopping.add(attempt.submission_id)
            self._say(f"job {attempt.job_id} is being stopped")

    def _hand_over(self, attempt: Attempt) -> None:
        job = self._store.job(attempt.job_id)
        if job.cancel_requested:
            self._close(attempt, Ending(status="lost"))
            return
        archive = snapshot_path(self._store.snapshots, job.snapshot)
        environment = {**job.environment, "DUALVIEW_JOB": str(job.id)}
        try:
            self._jobs.submit(attempt.submission_id, job.command, archive, environment)
        except RefusedError as error:
            self._close(attempt, Ending(status="refused", message=str(error)))
            return
        self._store.confirm(attempt)

    def _close(self, attempt: Attempt, ending: Ending) -> None:
        if ending.status not in ("lost", "refused"):
            self._keep_log(attempt)
        job = self._store.end_attempt(attempt, ending)
        self._say(f"job {job.id} {job.state}: {job.reason}")

    def _keep_log(self, attempt: Attempt) -> None:
        """Copy the attempt's output, which Ray loses with its head, before the store says that it has ended.

        A job that has ended has ended, whether or not its output can be had.
        """
        target = self._store.log(attempt)
        try:
            try:
                text = self._jobs.log(attempt.submission_id)
            except RayUnavailableError as error:
                text = f"(the output could not be had: {error})\n"
            target.parent.mkdir(parents=True, exist_ok=True)
            durable.write_bytes(target, text.encode(errors="replace"))
        except OSError as error:
            self._say(f"the output of {attempt.submission_id} is not kept: {error}")

    def _explain_all(self, reason: str) -> None:
        self._store.explain({job.id: reason for job in self._store.jobs("queued")})


@contextmanager
def only_one(store: Store) -> Generator[None]:
    """Hold the queue's dispatcher lock; it goes with the process, however it ends.

    Raises:
        InputError: another dispatcher holds it.
    """
    try:
        file = store.lock.open("a+")
    except OSError as error:
        raise InputError(f"{store.lock}: {error.strerror}; allowed: a queue whose folder can be written to") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another dispatcher serves the queue {store.file}; allowed: one") from None
        yield


def is_served(store: Store) -> bool:
    """Whether a dispatcher on this machine serves the queue."""
    try:
        with store.lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
