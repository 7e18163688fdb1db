"""The queue's record: jobs, attempts and events, every change one transaction.

An attempt is committed before it is submitted to Ray, under a unique submission id that Ray accepts only once. So after
a crash the database shows what may be running, and Ray can be asked about it.
"""

import re
import time
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, bindparam, func, select, update
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.orm import Session, aliased, load_only

from cluster import rows, secrets, snapshot
from cluster.admission import Wait
from cluster.database import schema
from cluster.database.kinds import Database, database
from cluster.database.lead import Lead
from cluster.database.tables import Attempt, Event, Job, Queue
from cluster.errors import InputError, NoQueueError, StoreUnavailableError
from cluster.files import Folder, open_files
from cluster.placement import Node
from cluster.reasons import Reason
from cluster.spec import END_STATES, OPEN_STATES, AfterHow, Asked, Beat, Ending, JobSpec, next_transition

BACK_OFF_S = 30.0  # after a job's first fault; each further one doubles it
MAX_BACK_OFF_S = 600.0
SHORT_ATTEMPT_S = 5.0  # a job that gives its machines back sooner, unasked, waits as after a fault
WAITING_COLUMNS = (
    Job.id, Job.gangs, Job.driver, Job.priority, Job.queue, Job.user, Job.waiting_since, Job.held_until, Job.hold,
    Job.after, Job.max_runtime_s, Job.preemptions, Job.reason, Job.reason_code, Job.start_at, Job.problem,
)  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """Where an attempt was put and what it was given.

    Attributes:
        driver: id of the node of the command.
        bundles: id of the node of each bundle.
        usage: node -> resource -> amount, of both.
        share: the dominant share of the cluster that this is.
    """

    driver: str
    bundles: tuple[str, ...]
    usage: Mapping[str, Mapping[str, float]]
    share: float = 0.0

    def total(self, resource: str) -> float:
        """How much of a resource it is, on all nodes."""
        return sum(amounts.get(resource, 0.0) for amounts in self.usage.values())


@dataclass(frozen=True)
class Glance:
    """The queue as a whole.

    Attributes:
        draining: whether nothing starts.
        preempted: how many attempts have been asked to make room for another job recently.
        owed: the queued jobs that others were asked to make room for since they ran last.
    """

    draining: bool
    preempted: int
    owed: frozenset[int]


@dataclass(frozen=True)
class Selection:
    """Which jobs; every field that is not empty narrows it.

    Attributes:
        ids: their ids.
        states: their states.
        name: their name, with `*` for any characters.
        user: their user.
        queue: their queue.
        array: the array that they were submitted with.
    """

    ids: Sequence[int] = ()
    states: Sequence[str] = ()
    name: str = ""
    user: str = ""
    queue: str = ""
    array: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The selection as conditions of a query."""
        texts = {Job.name: self.name, Job.user: self.user, Job.queue: self.queue}
        found: list[ColumnElement[bool]] = [
            column.like(re.sub(r"([\\%_])", r"\\\1", text).replace("*", "%"), escape="\\")
            for column, text in texts.items()
            if text
        ]
        if self.array is not None:
            found.append(Job.array_id == self.array)
        if self.ids:
            found.append(Job.id.in_(self.ids))
        if self.states:
            found.append(Job.state.in_(self.states))
        return found


_last = aliased(Attempt)
_began_last = select(func.coalesce(func.max(_last.began_at), 0.0)).where(_last.job_id == Attempt.asked_by)
_OWED = (
    select(Attempt.asked_by)
    .join(Job, Job.id == Attempt.asked_by)
    .where(Job.state == "queued", Attempt.asked_at > _began_last.scalar_subquery())
)
_PREEMPTED = select(func.count(Attempt.id)).where(
    Attempt.asked_by.is_not(None), Attempt.asked_at.between(bindparam("since"), bindparam("now"))
)
_DRAINING = select(Queue.draining)
_LEAD = select(
    Queue.epoch, Queue.holder
).with_for_update()  # whoever writes in Postgres holds this row; SQLite has one lock anyway
_NEWEST_EVENT = select(func.max(Event.id))
_OPEN = select(Attempt).where(Attempt.ended_at.is_(None)).order_by(Attempt.id)
_WAITING = select(Job).options(load_only(*WAITING_COLUMNS)).where(Job.state == "queued").order_by(Job.id)


class Store:
    """The queue in one database.

    Attributes:
        database: the database.
        id: distinguishes this queue's attempts from those of other queues on the same Ray cluster.
        files: its snapshots and logs.
        anchor: the path beside which tokens, secrets and the port of heartbeats are kept.
        lead: the lead without which nothing is written; None for anybody but a dispatcher.
    """

    def __init__(self, database: Database, engine: Engine) -> None:
        """Use `Store.open`."""
        self.database, self._engine = database, engine
        weakref.finalize(self, engine.dispose)  # closes its connections
        self.lead: Lead | None = None
        with self.session(write=False) as session:
            queue = session.scalars(select(Queue).options(load_only(Queue.id, Queue.files))).one()
        self.id = queue.id
        self.files = open_files(queue.files or str(database.default_files))
        if database.file is not None:
            self.anchor = database.file
        elif isinstance(self.files, Folder):
            self.anchor = self.files.path / "queue"
        else:
            self.anchor = Path.home() / ".dualview" / "queues" / self.id / "queue"

    @classmethod
    def open(cls, url: str, create: bool = True, files: str | None = None) -> "Store":
        """Open the queue at a URL such as `sqlite:////var/dualview/queue/queue.db`, upgraded if it is an earlier one.

        Args:
            url: URL of a SQLite file or a Postgres database.
            create: whether to create the queue if there is none.
            files: URI of the folder or the S3 prefix where a new queue keeps snapshots and logs; None for the folder of
                a SQLite file. A queue keeps them where it always has.

        Raises:
            NoQueueError: no queue there, and not `create`.
            InputError: not such a URL, another kind of file, another schema version, or other `files`.
            StoreUnavailableError: the database's server does not answer.
        """
        kind = database(url)
        place = None if files is None else open_files(files).uri
        name = url if kind.file is not None else kind.name
        try:
            if not kind.exists():
                if not create:
                    raise NoQueueError(f"--store {name}: no queue there yet; `python -m cluster submit` creates one")
                if place is None and kind.default_files is None:
                    raise InputError(
                        f"--store {name}: a new queue there needs a place for snapshots and logs that all its machines "
                        "reach; allowed: --files with an absolute path of a shared folder, or s3://bucket/prefix"
                    )
                kind.create(place)
            kind.upgrade(name)
            store = cls(kind, kind.connect())
        except OSError as error:
            raise InputError(f"--store {name}: {error.strerror}; allowed: a file in a writable folder") from None
        except DBAPIError as error:
            problem = " ".join(str(error.orig).split())
            if kind.file is None and isinstance(error, OperationalError):
                raise StoreUnavailableError(f"--store {name}: {problem}") from None
            raise InputError(f"--store {name}: {problem}; allowed: the database of a queue, or no file yet") from None
        if place not in (None, store.files.uri):
            raise InputError(f"--files {place}: this queue keeps its files at {store.files.uri}; allowed: that")
        return store

    def bind(self, address: str, moved: bool, knows: Callable[[str], bool] | None = None) -> None:
        """Record the Ray cluster that the queue's attempts run on; another cluster would know none of them.

        Args:
            address: the cluster's dashboard.
            moved: whether the cluster of the open attempts no longer exists.
            knows: tells whether that cluster knows an attempt: one cluster may have several addresses.

        Raises:
            InputError: attempts are open on another cluster, and not `moved`.
        """
        with self.session(write=False) as session:
            before = session.scalars(select(Queue.address)).one()
        known = knows is not None and any(knows(each.submission_id) for each in self.attempts())
        same = moved or known or before in (None, address)
        with self.session() as session:
            queue = session.scalars(select(Queue)).one()
            attempts = session.scalars(_OPEN).all()
            if attempts and not same:
                raise InputError(
                    f"--address {address}: job {attempts[0].job_id} was started at {queue.address}; allowed: that "
                    "address, or --moved if that cluster is gone or has this address now"
                )
            queue.address = address

    def version(self) -> int:
        """Another number after everything that happens to a job."""
        with self.session(write=False) as session:
            return session.scalars(_NEWEST_EVENT).one() or 0

    # ------------------------------------------------------------------ jobs

    def submit(self, spec: JobSpec, hold: bool = False) -> Job:
        """Add a job, or find the unfinished one that has its key.

        Raises:
            InputError: no such queue, a priority above the queue's, or a job to come after that does not exist.
        """
        return self.submit_all([spec], hold)[0][0]

    def submit_all(self, specs: Sequence[JobSpec], hold: bool = False, array: bool = False) -> list[tuple[Job, bool]]:
        """Add all jobs or none. Returns them, and whether each is new; see `submit`.

        Args:
            specs: the jobs.
            hold: whether they wait for `release`.
            array: whether they are an array.
        """
        jobs: list[tuple[Job, bool]] = []
        with self.session() as session:
            for name, priority in {(spec.queue, spec.priority) for spec in specs}:
                rows.check_priority(rows.find_team(session, name), priority)
            rows.check_there(session, {job_id for spec in specs for job_id in spec.after})
            known = rows.unfinished_by_key(session, {spec.key for spec in specs if spec.key is not None})
            for index, spec in enumerate(specs):
                twin = known.get(spec.key or "")
                jobs.append((twin or rows.made(spec, hold, index if array else None), twin is None))
                if spec.key is not None:
                    known[spec.key] = jobs[-1][0]
            rows.add([job for job, is_new in jobs if is_new], session)
        return jobs

    def comes_after(self, after: Mapping[int, AfterHow], queue: str, priority: int) -> dict[int, AfterHow]:
        """The jobs that a new one comes after: for the first of an array, all of it.

        Raises:
            InputError: as `submit`.
        """
        with self.session(write=False) as session:
            rows.check_priority(rows.find_team(session, queue), priority)
            rows.check_there(session, after)
            found = session.execute(select(Job.id, Job.array_id).where(Job.array_id.in_(list(after)))).all()
        return {**{job: after[array] for job, array in found if array is not None}, **after}

    def job(self, job_id: int) -> Job:
        """One job.

        Raises:
            InputError: there is none of this id.
        """
        with self.session(write=False) as session:
            return rows.find_job(session, job_id)

    def jobs(self, *states: str) -> Sequence[Job]:
        """The jobs in these states, or all; oldest first."""
        return self.select(Selection(states=states))

    def select(self, selection: Selection, newest: int | None = None, skip: int = 0) -> Sequence[Job]:
        """The jobs of a selection, oldest first.

        Args:
            selection: which.
            newest: only so many of the newest; None for all.
            skip: how many of the newest to leave out.
        """
        query = select(Job).where(*selection.conditions())
        with self.session(write=False) as session:
            if newest is None:
                return session.scalars(query.order_by(Job.id)).all()
            return session.scalars(query.order_by(Job.id.desc()).offset(skip).limit(newest)).all()[::-1]

    def oldest(self, selection: Selection, limit: int) -> Sequence[Job]:
        """The first jobs of a selection, oldest first."""
        query = select(Job).where(*selection.conditions()).order_by(Job.id).limit(limit)
        with self.session(write=False) as session:
            return session.scalars(query).all()

    def count(self, selection: Selection) -> int:
        """How many jobs a selection has."""
        with self.session(write=False) as session:
            return session.scalars(select(func.count(Job.id)).where(*selection.conditions())).one()

    def waiting(self) -> Sequence[Job]:
        """The queued jobs, oldest first, with WAITING_COLUMNS alone."""
        with self.session(write=False) as session:
            return session.scalars(_WAITING).all()

    def attempts(self, job_id: int | None = None) -> Sequence[Attempt]:
        """The attempts of a job, or the open ones of all jobs; oldest first."""
        query = _OPEN if job_id is None else select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.id)
        with self.session(write=False) as session:
            return session.scalars(query).all()

    def unstarted(self, since: float) -> Sequence[Attempt]:
        """The attempts that ended after a time, and of which Ray knew nothing then."""
        query = select(Attempt).where(Attempt.status.in_(("lost", "unstarted")), Attempt.ended_at > since)
        with self.session(write=False) as session:
            return session.scalars(query.order_by(Attempt.id)).all()

    def attempts_of(self, jobs: Iterable[int]) -> dict[int, list[Attempt]]:
        """The attempts of several jobs, by job, oldest first."""
        found: dict[int, list[Attempt]] = {job: [] for job in jobs}
        with self.session(write=False) as session:
            for some in rows.chunks(found):
                for attempt in session.scalars(select(Attempt).where(Attempt.job_id.in_(some)).order_by(Attempt.id)):
                    found[attempt.job_id].append(attempt)
        return found

    def events(self, job_id: int) -> Sequence[Event]:
        """What happened to a job; oldest first."""
        with self.session(write=False) as session:
            return session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id)).all()

    def states(self, jobs: Collection[int]) -> dict[int, str]:
        """Job -> state."""
        if not jobs:
            return {}
        with self.session(write=False) as session:
            found = [
                row
                for some in rows.chunks(jobs)
                for row in session.execute(select(Job.id, Job.state).where(Job.id.in_(some)))
            ]
        return {row.id: row.state for row in found}

    # ------------------------------------------------------------------ what people do with jobs

    def cancel(self, job_id: int, now: bool = False) -> Job:
        """Cancel a job: at once if it waits, through the dispatcher if it runs.

        Args:
            job_id: the job.
            now: whether to record its end at once also if it runs, for a cluster that is gone.

        Raises:
            InputError: there is no such job, or it has ended.
        """
        with self.session() as session:
            job = rows.find_unfinished(session, job_id)
            job.cancel_requested = True
            if job.state == "queued":
                rows.end(session, job, "cancelled", "cancelled while it waited")
            elif now:
                attempt = session.scalars(_OPEN.where(Attempt.job_id == job_id)).one()
                rows.close(session, attempt, Ending(status="lost"), "cancelled without asking Ray", fault=False)
                rows.end(session, job, "cancelled", "cancelled without asking Ray, which may still run it")
            else:
                rows.record_event(session, job.id, "cancellation requested")
            return job

    def hold(self, job_id: int) -> Job:
        """Keep a job from starting until it is released; one that runs goes on, and would not start again.

        Raises:
            InputError: there is no such job, or it has ended.
        """
        with self.session() as session:
            job = rows.find_unfinished(session, job_id)
            job.hold = job.hold or "held"
            rows.record_event(session, job.id, "held")
            return job

    def release(self, job_id: int) -> Job:
        """Let a job start that was held or parked, and not wait any longer for its back-off.

        Raises:
            InputError: there is no such job, or it has ended.
        """
        with self.session() as session:
            job = rows.find_unfinished(session, job_id)
            job.hold, job.problem, job.held_until, job.waiting_since = None, "", 0.0, time.time()
            rows.record_event(session, job.id, "released")
            return job

    def park(self, job_id: int, problem: str) -> None:
        """Keep a job that the dispatcher cannot handle from being tried again until it is released."""
        with self.session() as session:
            job = rows.find_job(session, job_id)
            if job.state in END_STATES or (job.hold, job.problem) == ("parked", problem):
                return
            job.hold, job.problem, job.reason = "parked", problem, problem
            job.reason_code = Reason.PARKED if job.state == "queued" else ""
            rows.record_event(session, job.id, f"parked: {problem}")

    def give_up(self, job_id: int, reason: str) -> Job:
        """Cancel a job that waits, since it can never start."""
        with self.session() as session:
            job = rows.find_job(session, job_id)
            if job.state == "queued":
                rows.end(session, job, "cancelled", reason)
            return job

    def requeue(self, job_id: int) -> Job:
        """Queue a job again that has ended, or ask one that runs to leave and start again.

        Raises:
            InputError: there is no such job, it waits, was asked to leave before, or is queued again under the same key
                already; or what it needs is there no longer: its queue, its code or its secrets.
        """
        if (before := self.job(job_id)).state in END_STATES:
            self._check_there(before)
        with self.session() as session:
            job = rows.find_job(session, job_id)
            if job.state == "queued":
                raise InputError(f"job {job_id}: waits already; allowed: a job that runs or has ended")
            if job.state in OPEN_STATES:
                attempt = session.scalars(_OPEN.where(Attempt.job_id == job_id)).one()
                if job.cancel_requested or not rows.ask(session, attempt, Asked(to="leave", reason="requeued by hand")):
                    raise InputError(
                        f"job {job_id}: was asked to leave before; allowed: one that was not, or has ended"
                    )
                return job
            rows.find_team(session, job.queue)
            if (twin := rows.unfinished_by_key(session, [job.key] if job.key else []).get(job.key or "")) is not None:
                raise InputError(
                    f"job {job_id}: job {twin.id} does the same and is {twin.state}; allowed: one of the two"
                )
            faults = update(Attempt).where(Attempt.job_id == job_id).values(fault=False)
            session.execute(faults)
            job.state, job.ended_at, job.cancel_requested, job.held_until = "queued", None, False, 0.0
            job.reason, job.reason_code, job.waiting_since = "queued again by hand", Reason.NEW, time.time()
            rows.record_event(session, job.id, "queued again by hand")
            return job

    def _check_there(self, job: Job) -> None:
        """Raise InputError if a job's code or secrets have been removed; not within a transaction."""
        gone = [str(path) for path in secrets.files(self.anchor, job.environment) if not path.exists()]
        if not self.files.exists(name := snapshot.name_of(job.snapshot)):
            gone.append(f"{self.files.uri}/{name}")
        if gone:
            raise InputError(f"job {job.id}: {gone[0]} was removed when it had ended; allowed: to submit it again")

    def change(self, job_id: int, **fields: str | float | None) -> Job:
        """Change a job's priority, its queue, or how long an attempt may run.

        Raises:
            InputError: there is no such job or queue, it has ended, or the priority is above the queue's.
        """
        with self.session() as session:
            job = rows.find_unfinished(session, job_id)
            queue, priority = fields.get("queue", job.queue), fields.get("priority", job.priority)
            rows.check_priority(rows.find_team(session, str(queue)), int(priority or 0))
            for name, value in fields.items():
                setattr(job, name, value)
            rows.record_event(session, job.id, "changed: " + ", ".join(f"{name} = {fields[name]}" for name in fields))
            return job

    # ------------------------------------------------------------------ what the dispatcher does with jobs

    def explain(self, waits: Mapping[int, Wait]) -> None:
        """Record why waiting jobs wait."""
        changes = [
            {"id": job, "reason": wait.text, "reason_code": str(wait.code), "start_at": wait.start_at}
            for job, wait in waits.items()
        ]
        with self.session() as session:
            waiting = set(session.scalars(select(Job.id).where(Job.state == "queued")))
            if found := [each for each in changes if each["id"] in waiting]:
                session.execute(update(Job), found)

    def begin_attempt(self, job_id: int, placed: Placed | None = None) -> Attempt | None:
        """Record a new attempt, before it is submitted to Ray; None if the job may not start any more."""
        with self.session() as session:
            job = rows.find_job(session, job_id)
            if job.state != "queued" or job.hold is not None or session.scalars(_DRAINING).one():
                return None
            number = session.scalars(select(func.count(Attempt.id)).where(Attempt.job_id == job_id)).one() + 1
            name = f"dualview-{self.id[:8]}-{job_id}-{number}"
            attempt = Attempt(job_id=job_id, number=number, submission_id=name, began_at=time.time())
            where = ""
            if placed is not None:
                attempt.placement = {
                    "driver": placed.driver, "bundles": list(placed.bundles), "usage": placed.usage,
                }  # fmt: skip
                attempt.cpus, attempt.gpus, attempt.share = placed.total("CPU"), placed.total("GPU"), placed.share
                where = f" with room on {len(placed.usage)} node{'s' if len(placed.usage) > 1 else ''}"
            session.add(attempt)
            job.state, job.reason, job.reason_code = "starting", f"attempt {number} is starting{where}", ""
            job.start_at = None
            rows.record_event(session, job_id, f"attempt {number} begins{where} as {name}")
            return attempt

    def confirm(self, attempt: Attempt) -> None:
        """Record that Ray has accepted an attempt; one that has ended is left unchanged."""
        with self.session() as session:
            stored = session.get_one(Attempt, attempt.id)
            if stored.ended_at is None:
                stored.confirmed = True
                rows.unpark(rows.find_job(session, stored.job_id))

    def observe(self, attempt: Attempt, running: bool, words: str) -> None:
        """Record what an open attempt does; one that ran before still runs.

        Args:
            attempt: the attempt.
            running: whether its command runs and its gang has formed.
            words: what it does, for people.
        """
        with self.session() as session:
            stored = session.get_one(Attempt, attempt.id)
            if stored.ended_at is not None:
                return
            job = rows.find_job(session, stored.job_id)
            stored.confirmed, job.reason = True, words
            rows.unpark(job)
            if running and stored.running_at is None:
                stored.running_at, job.state = time.time(), "running"
                rows.record_event(session, job.id, f"attempt {stored.number} runs")

    def note(self, job_id: int, words: str) -> None:
        """Say of a job with an open attempt what is the matter with it."""
        with self.session() as session:
            job = rows.find_job(session, job_id)
            if job.state in OPEN_STATES:
                job.reason = words

    def hear(self, beats: Mapping[str, Beat]) -> None:
        """Record heartbeats; submission id -> the newest."""
        if not beats:
            return
        with self.session() as session:
            for attempt in session.scalars(_OPEN.where(Attempt.submission_id.in_(list(beats)))):
                beat = beats[attempt.submission_id]
                attempt.heard_at = beat.at
                attempt.step = attempt.step if beat.step is None else beat.step
                attempt.saved_step = attempt.saved_step if beat.saved_step is None else beat.saved_step

    def ask(self, attempt: Attempt, asked: Asked, by: int | None = None) -> bool:
        """Record what is asked of an open attempt; False if it was asked before.

        Args:
            attempt: the attempt.
            asked: what is asked of it.
            by: the job that it makes room for; None if there is none.
        """
        with self.session() as session:
            stored = session.get_one(Attempt, attempt.id)
            return stored.ended_at is None and rows.ask(session, stored, asked, by)

    def end_attempt(self, attempt: Attempt, ending: Ending) -> Job:
        """Close an attempt and update its job; closing it again changes nothing."""
        with self.session() as session:
            job, attempt = rows.find_job(session, attempt.job_id), session.get_one(Attempt, attempt.id)
            if attempt.ended_at is not None:
                return job
            others = select(Attempt).where(Attempt.job_id == job.id, Attempt.id != attempt.id).order_by(Attempt.id)
            before = session.scalars(others).all()
            faults = sum(each.fault for each in before)
            asked = rows.asked_of(job, attempt)
            transition = next_transition(
                ending, asked, faults, job.retries, rows.has_progressed(attempt, ending, before)
            )
            rows.close(session, attempt, ending, transition.reason, transition.fault)
            if transition.state != "queued":
                rows.end(session, job, transition.state, transition.reason)
                return job
            job.state, job.reason, job.reason_code = "queued", transition.reason, Reason.NEW
            job.waiting_since = time.time()
            if attempt.asked_by is not None:
                job.preemptions += 1
            if transition.fault:
                job.held_until = time.time() + min(BACK_OFF_S * 2**faults, MAX_BACK_OFF_S)
            elif asked is None and time.time() - attempt.began_at < SHORT_ATTEMPT_S:
                job.held_until = time.time() + BACK_OFF_S
            rows.record_event(session, job.id, f"attempt {attempt.number}: {transition.reason}")
            return job

    def glance(self, since: float) -> Glance:
        """What admission needs to know of the queue as a whole.

        Args:
            since: the time from which on preemptions count.
        """
        with self.session(write=False) as session:
            draining = session.scalars(_DRAINING).one()
            preempted = session.scalars(_PREEMPTED, {"since": since, "now": time.time()}).one()
            return Glance(draining, preempted, frozenset(job for job in session.scalars(_OWED) if job is not None))

    def see_nodes(self, nodes: Sequence[Node]) -> None:
        """Remember what there is, for those who submit."""
        seen = [{"total": dict(node.total), "labels": dict(node.labels)} for node in nodes]
        with self.session() as session:
            session.scalars(select(Queue)).one().nodes = seen

    def nodes(self) -> list[Node]:
        """What the dispatcher saw last of the nodes; none before it has looked."""
        with self.session(write=False) as session:
            seen = session.scalars(select(Queue.nodes)).one()
        return [Node(str(index), each["total"], labels=each["labels"]) for index, each in enumerate(seen)]

    def drain(self, draining: bool) -> None:
        """Let no further job start, or let them start again."""
        with self.session() as session:
            session.scalars(select(Queue)).one().draining = draining

    @contextmanager
    def session(self, write: bool = True) -> Generator[Session]:
        """A transaction; of those that write there is one at a time.

        Raises:
            StoreUnavailableError: the database cannot be read or written now.
            DeposedError: it is to write, and another dispatcher leads.
        """
        engine = self._engine if write else self._engine.execution_options(**schema.READ_ONLY)
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                if write:
                    epoch, holder = session.execute(_LEAD).one()
                    if self.lead is not None:
                        self.lead.compare(epoch, holder)
                yield session
        except DataError:  # what was to be stored is at fault
            raise
        except DBAPIError as error:
            problem = " ".join(str(error.orig).split())
            raise StoreUnavailableError(f"the queue's database {self.database.name}: {problem}") from error
