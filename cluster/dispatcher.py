"""The dispatcher: reconciles the store's record with what Ray runs, one pass at a time.

It keeps no essential state in memory. A pass asks Ray about the open attempts and updates their jobs, asks those to
leave that have to, and starts the jobs that admission chose: it commits the attempt, submits it to Ray, then records
that Ray has accepted it. If the dispatcher is killed between any two of these, the next pass finds the open attempt,
asks Ray, and submits it again only if Ray does not know its submission id.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from cluster import secrets, snapshot
from cluster.accounts import Accounts
from cluster.admission import WANT_ROOM, Policy, Preempt, Round, Running, Start, Wait, Waiting, decide, points
from cluster.database.tables import Attempt, Job
from cluster.errors import (
    DeposedError,
    FilesUnavailableError,
    InputError,
    RayFailedError,
    RayUnavailableError,
    RefusedError,
    StoreUnavailableError,
)
from cluster.files import ends_of, log_name
from cluster.placement import Node
from cluster.reasons import Reason
from cluster.resources import Bundle, Shape
from cluster.spec import END_STATES, OPEN_STATES, Alive, Asked, Beat, Ending
from cluster.store import Placed, Selection, Store

MAX_RETRY_WAIT_S = 30.0
LOOK_S = 0.1  # between looks whether the queue has changed
LATE_S = 600.0  # for which Ray may still accept what it was asked before
LOOK_AFTER_S = 10.0  # between looks for that
FORECAST_REST = 20.0  # times as long as a round with a forecast of when jobs start takes, there is none
IDLE_LOOK_S = 10.0  # between looks at the nodes while nothing waits or runs
FILES_AWAY_S = 10.0  # in which nothing starts after the place of snapshots did not answer
MAX_LOG_BYTES = 2**27  # of an attempt's output that are kept: the first and the last half
READ_S = 30.0  # for which it is read
SAVE_S = 120.0  # for which the output of an attempt that has ended is tried to be kept
PREEMPTION_WINDOW_S = 600.0  # in which no more than `Policy.max_preemptions` jobs are asked to make room
PLACEMENT_VARIABLE = "DUALVIEW_PLACEMENT"
REMEMBERED_SHAPES = 20_000

Usage = Mapping[str, Mapping[str, float]]  # node -> resource -> amount
_P = ParamSpec("_P")
_T = TypeVar("_T")


class JobServer(Protocol):
    """What the dispatcher asks of Ray; see `cluster.ray_jobs.RayJobs`."""

    def nodes(self, ours: Sequence[str]) -> tuple[list[Node], dict[str, Usage]]:
        """The live nodes with what others hold; and what each open attempt of the queue holds."""
        ...

    def submit(
        self,
        submission_id: str,
        command: list[str],
        snapshot: Path,
        environment: dict[str, str],
        driver: Bundle | None = None,
        node: str | None = None,
    ) -> None:
        """Start a command under an id that Ray accepts only once; RefusedError if Ray rejects the job."""
        ...

    def look(self, submission_id: str) -> Alive | Ending:
        """What an attempt does, or how it ended."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop an attempt."""
        ...

    def log(self, submission_id: str) -> Iterable[bytes]:
        """All output of an attempt so far, in parts."""
        ...


class Listener(Protocol):
    """What the dispatcher hears from attempts; see `cluster.heartbeats.HeartbeatServer`."""

    loopback: bool

    def environment(self, submission_id: str) -> dict[str, str]:
        """The variables that an attempt finds it by."""
        ...

    def heard(self) -> Mapping[str, Beat]:
        """The newest heartbeat of each attempt."""
        ...

    def serve(self, submission_ids: Iterable[str]) -> None:
        """Be the one that these attempts send heartbeats to."""
        ...

    def answer(self, leave: Mapping[str, str]) -> None:
        """Ask these attempts to leave, from now on: submission id -> why."""
        ...

    def forget(self, submission_id: str) -> None:
        """An attempt has ended."""
        ...

    def measure(self, kind: str, counts: Mapping[tuple[str, str], int]) -> None:
        """Show how many jobs are `waiting`, by queue and code, or `running`, by queue and state."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long the dispatcher waits for attempts.

    Attributes:
        start_s: for a gang to form.
        leave_s: for one to leave that was asked to; then Ray sends it SIGTERM.
        silent_s: the same for one that has sent no heartbeat by then.
        checkpoint_s: before the end of its declared time an attempt is asked to leave, at most; a tenth of that time
            where that is less.
    """

    start_s: float = 600.0
    leave_s: float = 120.0
    silent_s: float = 20.0
    checkpoint_s: float = 120.0


@dataclass
class _Seen:
    """What a pass knows of the open attempts.

    Attributes:
        attempts: those that have not ended.
        jobs: their jobs.
    """

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    jobs: dict[int, Job] = field(default_factory=dict[int, Job])


class Dispatcher:
    """Runs the jobs of one queue on one Ray cluster."""

    def __init__(
        self,
        store: Store,
        server: JobServer,
        report: Callable[[str], None],
        listener: Listener,
        policy: Policy | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Starts nothing by itself: call `run` or `step`. `report` receives a line to print for every event."""
        self._store, self._server, self._report, self._listener = store, server, report, listener
        self._accounts = Accounts(store)
        self._policy, self._patience = policy or Policy(), patience or Patience()
        self._reported_stopping: set[str] = set()
        self._starting_since: dict[str, float] = {}
        self._began: dict[str, float] = {}  # attempt -> when, on a clock that is never set
        self._idle_until = 0.0
        self._failures: dict[int, str] = {}
        self._noted, self._look_at = False, 0.0
        self._files_away, self._files_at = "", 0.0
        self._unsaved_since: dict[str, float] = {}
        self._there: list[tuple[Mapping[str, float], Mapping[str, str]]] = []
        self._shapes: dict[str, Shape] = {}
        self._waits: dict[int, Wait] = {}
        self._forecast_at = 0.0

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
                if drain and not self._store.count(Selection(states=("queued", *OPEN_STATES))):
                    return
            except (RayUnavailableError, StoreUnavailableError) as error:
                if not problem:
                    self._report(f"{error}; trying again")
                wait, problem = min(2 * wait, MAX_RETRY_WAIT_S), str(error)
            self._wait(wait, stop)

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        """Wait, or until somebody has changed the queue."""
        version, until = self._version(), time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0 and self._version() == version:
            if stop.wait(min(rest, LOOK_S)):
                return

    def _version(self) -> int:
        try:
            return self._store.version()
        except StoreUnavailableError:
            return -1

    def step(self) -> None:
        """One pass: update the open attempts, then start what can start.

        Raises:
            RayUnavailableError: Ray does not answer; the next pass resumes from what the store records.
            DeposedError: another dispatcher has taken over.
        """
        self._look_after_others()
        seen = self._follow_all()
        glance = self._store.glance(time.time() - PREEMPTION_WINDOW_S)
        waiting = self._waiting(glance.owed)
        if not waiting and not seen.attempts and time.monotonic() < self._idle_until:
            self._measure(waiting, seen, Round())
            return
        self._idle_until = time.monotonic() + IDLE_LOOK_S
        nodes, holds = self._server.nodes([attempt.submission_id for attempt in seen.attempts])
        self._look_around(nodes)
        self._leave_lost_nodes(seen, nodes)
        now = time.time()
        running = [self._running(attempt, seen.jobs[attempt.job_id], holds) for attempt in seen.attempts]
        policy = replace(
            self._policy,
            draining=glance.draining,
            forecasts=self._policy.forecasts if time.monotonic() >= self._forecast_at else 0,
            max_preemptions=max(0, self._policy.max_preemptions - glance.preempted),
        )
        began = time.monotonic()
        decided = decide(nodes, running, waiting, self._accounts.terms(now), policy, now)
        if policy.forecasts:
            self._forecast_at = time.monotonic() + FORECAST_REST * (time.monotonic() - began)
        self._record(decided, bool(policy.forecasts))
        self._measure(waiting, seen, decided)
        for preempt in decided.preempts:
            self._preempt(preempt, seen)
        shapes = {job.id: job.shape for job in waiting}
        for start in decided.starts:
            self._guarded(start.job, self._start, start, shapes[start.job])
        self._answer(seen)

    # ------------------------------------------------------------------ open attempts

    def _follow_all(self) -> _Seen:
        heard, seen = self._listener.heard(), _Seen()
        self._store.hear(heard)
        attempts = self._store.attempts()
        names = {attempt.submission_id for attempt in attempts}
        for since in (self._began, self._starting_since, self._unsaved_since):
            for name in since.keys() - names:
                del since[name]
        jobs = (
            {job.id: job for job in self._store.select(Selection(ids=[each.job_id for each in attempts]))}
            if attempts
            else {}
        )
        for attempt in attempts:
            job = jobs[attempt.job_id]
            if self._guarded(job.id, self._follow, attempt, job, heard.get(attempt.submission_id)) is not False:
                seen.attempts.append(attempt)
                seen.jobs[job.id] = job
        return seen

    def _follow(self, attempt: Attempt, job: Job, beat: Beat | None) -> bool:
        """Look at an open attempt; whether it is still open."""
        status = self._server.look(attempt.submission_id)
        if isinstance(status, Ending):
            if status.status == "lost" and not attempt.confirmed:
                if job.hold != "parked":
                    return self._submit(attempt, job)
                status = Ending(status="unstarted")
            self._close(attempt, status)
            return False
        running, words = self._progress(attempt, job, status, beat)
        if not attempt.confirmed or words != job.reason or (running and attempt.running_at is None):
            self._store.observe(attempt, running, words)
        if job.cancel_requested:
            self._stop(attempt)
            return True
        if attempt.asked is None:
            self._ask_for_reasons_of_its_own(attempt, job, status, running)
        elif (
            not 0 <= time.time() - (attempt.asked_at or 0.0) <= self._grace(attempt, job, beat)
        ):  # or the clock was set back
            self._stop(attempt)
        return True

    def _progress(self, attempt: Attempt, job: Job, status: Alive, beat: Beat | None) -> tuple[bool, str]:
        """Whether an attempt's gang has formed, and what it does in words."""
        if attempt.asked:
            return attempt.running_at is not None, f"{attempt.asked_reason}; asked to leave"
        if not status.started:
            return False, "Ray has not started its command yet" + (f": {status.message}" if status.message else "")
        if beat is not None:
            return beat.state == "running", beat.words()
        if job.says_when and attempt.running_at is None:
            long = self._ran(attempt) > self._patience.start_s
            more = f" in {self._patience.start_s:g} s: it prepares data, or its heartbeats do not arrive"
            return False, f"its command runs, and has said nothing{more if long else ' yet'}"
        return True, f"attempt {attempt.number} runs as {attempt.submission_id}"

    def _ask_for_reasons_of_its_own(self, attempt: Attempt, job: Job, status: Alive, running: bool) -> None:
        """Ask an attempt to leave whose gang does not form, or whose time is up."""
        clock, patience = time.monotonic(), self._patience
        silent = status.started and job.says_when and attempt.heard_at is None  # it prepares data, say
        if running or silent:
            self._starting_since.pop(attempt.submission_id, None)
        elif clock - self._starting_since.setdefault(attempt.submission_id, clock) > patience.start_s:
            reason = f"its gang did not form within {patience.start_s:g} s"
            self._ask(attempt, Asked(to="restart", reason=reason))
            return
        limit_s = job.max_runtime_s
        if limit_s is not None and self._ran(attempt) > limit_s - self._early(limit_s):
            to = "limit" if job.at_the_limit == "requeue" else "finish"
            self._ask(attempt, Asked(to=to, reason=f"it ran for its --max-runtime of {limit_s:g} s"))

    def _ask(self, attempt: Attempt, asked: Asked, by: int | None = None) -> None:
        if self._store.ask(attempt, asked, by):
            attempt.asked, attempt.asked_reason, attempt.asked_at = asked.to, asked.reason, time.time()
            self._report(f"job {attempt.job_id} is asked to leave: {asked.reason}")

    def _ran(self, attempt: Attempt) -> float:
        """For how long an attempt has run, whatever happens to the clock while this dispatcher looks."""
        now, name = time.monotonic(), attempt.submission_id
        return now - self._began.setdefault(name, now - max(0.0, time.time() - attempt.began_at))

    def _early(self, max_runtime_s: float) -> float:
        """How long before the end of its time an attempt is asked to leave."""
        return min(self._patience.checkpoint_s, max_runtime_s / 10)

    def _grace(self, attempt: Attempt, job: Job, beat: Beat | None) -> float:
        """How long an attempt may take to leave by itself, within its time; without heartbeats it cannot know."""
        patience, silent = self._patience, beat is None and attempt.heard_at is None
        if attempt.asked == "restart":
            return min(patience.silent_s, patience.leave_s)
        grace = patience.silent_s if silent else patience.leave_s
        if job.max_runtime_s is None:
            return grace
        left = attempt.began_at + job.max_runtime_s - (attempt.asked_at or 0.0)
        if silent and attempt.asked in ("limit", "finish"):  # nothing but its time asks it, and that is its own
            return min(max(left, 0.0), self._early(job.max_runtime_s))
        return min(grace, max(left, self._early(job.max_runtime_s)))

    def _look_after_others(self) -> None:
        """Undo, now and then, what another dispatcher did while it lost the lead or was killed.

        A request to Ray that was under way may be accepted after the store has recorded that nothing runs: that is
        stopped. And a token's file may name the other's address.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_AFTER_S
        for attempt in self._store.unstarted(time.time() - LATE_S):
            self._guarded(attempt.job_id, self._stop_late, attempt)
        self._check_lead()
        try:
            self._listener.serve([attempt.submission_id for attempt in self._store.attempts()])
        except FilesUnavailableError as error:
            self._report(str(error))

    def _stop_late(self, attempt: Attempt) -> None:
        if isinstance(self._server.look(attempt.submission_id), Alive):
            self._check_lead()
            self._server.stop(attempt.submission_id)
            if attempt.submission_id not in self._reported_stopping:
                self._reported_stopping.add(attempt.submission_id)
                self._report(f"job {attempt.job_id}: {attempt.submission_id} has ended, and Ray runs it: it is stopped")

    def _stop(self, attempt: Attempt) -> None:
        """Ask Ray to stop the attempt, in every pass: Ray loses a request that comes while the attempt is starting."""
        self._check_lead()
        self._server.stop(attempt.submission_id)
        if attempt.submission_id not in self._reported_stopping:
            self._reported_stopping.add(attempt.submission_id)
            self._report(f"job {attempt.job_id} is being stopped")

    def _look_around(self, nodes: Sequence[Node]) -> None:
        """Remember what there is for those who submit; say once that jobs on other machines cannot send heartbeats."""
        there = [(node.total, node.labels) for node in nodes]
        if there != self._there:
            self._store.see_nodes(nodes)
            self._there = there
        hosts = {node.host for node in nodes}
        if self._listener.loopback and len(hosts) > 1 and not self._noted:
            self._noted = True
            self._report(
                f"note: the nodes are on {len(hosts)} machines, and heartbeats are listened for on this one alone: "
                "--listen takes an address that the others reach"
            )

    def _leave_lost_nodes(self, seen: _Seen, nodes: Sequence[Node]) -> None:
        """Ask the attempts to leave that were given a node which is gone: their gangs cannot form there again."""
        alive = {node.id for node in nodes}
        for attempt in seen.attempts:
            placed = attempt.placement
            needed = [*placed["bundles"], *([] if attempt.running_at else [placed["driver"]])] if placed else []
            lost = sorted({*needed} - alive)
            if lost and attempt.asked is None and attempt.confirmed:
                names = ", ".join(each[:8] for each in lost)
                self._ask(attempt, Asked(to="leave", reason=f"node {names} that it was given is gone"))

    def _answer(self, seen: _Seen) -> None:
        self._listener.answer(
            {each.submission_id: each.asked_reason for each in seen.attempts if each.asked is not None}
        )

    # ------------------------------------------------------------------ waiting jobs

    def _waiting(self, owed: Collection[int]) -> list[Waiting]:
        rows = self._store.waiting()
        states = self._store.states({int(each) for row in rows for each in row.after})
        self._waits = {row.id: Wait(Reason(row.reason_code or "new"), row.reason, row.start_at) for row in rows}
        waiting: list[Waiting] = []
        for row in rows:
            unmet = [
                each
                for each, how in row.after.items()
                if how == "ok" and states.get(int(each)) in ("failed", "cancelled")
            ]
            if unmet:
                job = self._store.give_up(row.id, f"job {unmet[0]}, which it comes after, {states[int(unmet[0])]}")
                secrets.forget(self._store.anchor, job.environment)
                self._report(f"job {job.id} {job.state}: {job.reason}")
                continue
            after = tuple(int(each) for each in row.after if states.get(int(each)) in ("queued", "starting", "running"))
            found = self._guarded(row.id, self._as_waiting, row, after, row.id in owed)
            if found:
                waiting.append(found)
        return waiting

    def _as_waiting(self, job: Job, after: tuple[int, ...], owed: bool) -> Waiting:
        stopped = None
        if job.hold == "held":
            stopped = (Reason.HELD, "held; `python -m cluster release` lets it start")
        elif job.hold is not None:
            stopped = (Reason.PARKED, job.problem)
        return Waiting(
            job.id, self._shape(job), job.priority, job.queue, job.user, job.waiting_since, job.held_until, stopped,
            after, job.max_runtime_s, job.preemptions, owed,
        )  # fmt: skip

    def _shape(self, job: Job) -> Shape:
        """A job's shape; equal ones are one object."""
        text = json.dumps([job.gangs, job.driver])
        if text not in self._shapes:
            if len(self._shapes) > REMEMBERED_SHAPES:
                self._shapes.clear()
            gangs = [[Bundle.model_validate(bundle) for bundle in gang] for gang in job.gangs]
            self._shapes[text] = Shape.of(gangs, Bundle.model_validate(job.driver))
        return self._shapes[text]

    def _running(self, attempt: Attempt, job: Job, holds: Mapping[str, Usage]) -> Running:
        """An open attempt for admission: what it was given, or what it holds where that is more."""
        usage = {node: dict(amounts) for node, amounts in (attempt.placement or {}).get("usage", {}).items()}
        for node, amounts in holds.get(attempt.submission_id, {}).items():
            given = usage.setdefault(node, {})
            for name, amount in amounts.items():
                given[name] = max(given.get(name, 0.0), amount)
        began_at = time.time() - self._ran(attempt)
        ends_at = None if job.max_runtime_s is None else began_at + job.max_runtime_s
        waited = points(attempt.began_at - job.waiting_since, self._policy)
        lost = None if attempt.step is None else max(0, attempt.step - (attempt.saved_step or 0))
        return Running(
            job.id, usage, began_at, ends_at, job.priority + job.preemptions + waited, job.queue, job.user,
            lost, leaving=attempt.asked is not None or job.cancel_requested,
        )  # fmt: skip

    def _record(self, decided: Round, is_forecast: bool) -> None:
        """Record the reasons that have changed."""
        waits = {job: self._expected(job, wait, is_forecast) for job, wait in decided.waits.items()}
        changed = {job: wait for job, wait in waits.items() if self._waits.get(job) != wait}
        if changed:
            self._store.explain(changed)

    def _expected(self, job: int, wait: Wait, is_forecast: bool) -> Wait:
        """A wait with the expected start rounded up to the minute, or it would be recorded in each pass."""
        if wait.start_at is not None:
            return replace(wait, start_at=60.0 * math.ceil(wait.start_at / 60))
        before = self._waits.get(job)
        known = not is_forecast and before is not None and {before.code, wait.code} <= set(WANT_ROOM)
        return replace(wait, start_at=before.start_at) if known and before else wait

    def _measure(self, waiting: Sequence[Waiting], seen: _Seen, decided: Round) -> None:
        queues = {job.id: job.queue for job in waiting}
        waits = Counter((queues[job], str(wait.code)) for job, wait in decided.waits.items())
        self._listener.measure("waiting", waits)
        self._listener.measure("running", Counter((job.queue, job.state) for job in seen.jobs.values()))

    def _preempt(self, preempt: Preempt, seen: _Seen) -> None:
        attempt = next(each for each in seen.attempts if each.job_id == preempt.job)
        self._ask(attempt, Asked(to="leave", reason=f"makes room for job {preempt.by}"), preempt.by)

    # ------------------------------------------------------------------ starts and ends

    def _start(self, start: Start, shape: Shape) -> None:
        attempt = self._store.begin_attempt(start.job, placed(start, shape))
        if attempt is not None:
            self._report(f"job {start.job} starts (attempt {attempt.number})")
            self._submit(attempt, self._store.job(start.job))

    def _submit(self, attempt: Attempt, job: Job) -> bool:
        """Submit an attempt to Ray; whether it is open."""
        if job.cancel_requested or attempt.asked is not None:
            self._close(attempt, Ending(status="unstarted"))
            return False
        if time.monotonic() < self._files_at:
            raise FilesUnavailableError(self._files_away)
        self._check_lead()
        environment = {
            **job.environment,
            "DUALVIEW_JOB": str(job.id),
            **self._listener.environment(attempt.submission_id),
        }
        node = None
        if attempt.placement is not None:
            node = attempt.placement["driver"]
            environment[PLACEMENT_VARIABLE] = json.dumps({"driver": node, "bundles": attempt.placement["bundles"]})
        driver = Bundle.model_validate(job.driver) if node is not None else None
        archive = self._store.files.local(snapshot.name_of(job.snapshot))
        self._check_lead()
        try:
            self._server.submit(attempt.submission_id, job.command, archive, environment, driver, node)
        except RefusedError as error:
            self._close(attempt, Ending(status="refused", message=str(error)))
            return False
        self._store.confirm(attempt)
        return True

    def _close(self, attempt: Attempt, ending: Ending) -> None:
        """Record the end of an attempt; FilesUnavailableError if its output is to be kept first, in a later pass."""
        if ending.status not in ("lost", "refused", "unstarted"):
            self._keep_log(attempt)
        heard = self._listener.heard()
        if attempt.submission_id in heard:  # its last words may have come since this pass began
            self._store.hear({attempt.submission_id: heard[attempt.submission_id]})
        job = self._store.end_attempt(attempt, ending)
        self._listener.forget(attempt.submission_id)
        if job.state in END_STATES:
            secrets.forget(self._store.anchor, job.environment)
        self._failures.pop(attempt.job_id, None)
        self._reported_stopping.discard(attempt.submission_id)
        self._report(f"job {job.id} {job.state}: {job.reason}")

    def _keep_log(self, attempt: Attempt) -> None:
        """Copy the attempt's output, which is lost with Ray's head, before the store records that it has ended.

        An output that cannot be fetched, or not be written for SAVE_S seconds, does not keep the job from ending.
        """
        try:
            self._store.files.write(log_name(attempt.submission_id), self._output(attempt))
        except FilesUnavailableError as error:
            since = self._unsaved_since.setdefault(attempt.submission_id, time.monotonic())
            if time.monotonic() < since + SAVE_S:
                raise
            self._report(f"the output of {attempt.submission_id} could not be saved: {error}")

    def _output(self, attempt: Attempt) -> Iterator[bytes]:
        try:
            yield from ends_of(self._server.log(attempt.submission_id), MAX_LOG_BYTES, READ_S)
        except RayUnavailableError as error:
            yield f"(the output could not be fetched: {error})\n".encode()
        self._check_lead()  # another dispatcher may have kept it, and had more of it

    # ------------------------------------------------------------------ when something is wrong

    def _guarded(self, job: int, action: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T | None:
        """Do something for a job; what is wrong with it alone does not keep the others from going on.

        What Ray fails to do is tried again in the next pass; an error that nobody foresaw parks the job.
        """
        try:
            return action(*arguments, **named)
        except (RayFailedError, FilesUnavailableError) as error:
            if isinstance(error, FilesUnavailableError):
                self._files_away, self._files_at = str(error), time.monotonic() + FILES_AWAY_S
            if self._failures.get(job) != str(error):
                self._failures[job] = str(error)
                self._report(f"job {job}: {error}; trying again")
                self._store.note(job, str(error))
            return None
        except (RayUnavailableError, StoreUnavailableError, DeposedError, InputError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's alone
            problem = f"the dispatcher cannot handle it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._store.park(job, problem)
            self._report(f"job {job} is parked: {problem}")
            return None

    def _check_lead(self) -> None:
        """Raise DeposedError unless this dispatcher leads: Ray would do what any of them asks."""
        if self._store.lead is not None:
            self._store.lead.check()

    def _explain_waiting(self, reason: str) -> None:
        waiting = self._store.waiting()
        self._listener.measure("waiting", Counter((job.queue, str(Reason.UNAVAILABLE)) for job in waiting))
        self._store.explain({job.id: Wait(Reason.UNAVAILABLE, reason) for job in waiting})


def placed(start: Start, shape: Shape) -> Placed:
    """Where a job starts, with what it takes of each node."""
    placement = start.placement
    usage: dict[str, dict[str, float]] = {}
    kinds = [*zip(placement.bundles, shape.gangs[placement.gang], strict=True), (placement.driver, shape.driver)]
    for node, kind in kinds:
        given = usage.setdefault(node, {})
        for name, amount in kind.resources():
            given[name] = given.get(name, 0.0) + amount
    return Placed(placement.driver, placement.bundles, usage, start.share)
