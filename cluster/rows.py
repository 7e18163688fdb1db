"""What becomes of the rows of jobs and attempts, within one transaction of the store."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.database.tables import Attempt, Event, Job, Team
from cluster.errors import InputError
from cluster.spec import END_STATES, PREEMPTED_EXIT_CODE, Asked, Ending, JobSpec

MAX_PARAMETERS = 10_000  # of a statement
SOON_S = 300.0  # an attempt that says nothing of checkpoints, and leaves sooner, may have none
_T = TypeVar("_T")


def find_job(session: Session, job_id: int) -> Job:
    """A job.

    Raises:
        InputError: there is none with this id.
    """
    job = session.get(Job, job_id)
    if job is None:
        last = session.scalars(select(Job.id).order_by(Job.id.desc())).first()
        raise InputError(f"job {job_id}: no such job; allowed: " + (f"1 to {last}" if last else "submit one first"))
    return job


def unfinished_by_key(session: Session, keys: Collection[str]) -> dict[str, Job]:
    """The unfinished jobs with these keys."""
    found = (
        session.scalars(select(Job).where(Job.key.in_(some), Job.state.not_in(END_STATES))) for some in chunks(keys)
    )
    return {str(job.key): job for jobs in found for job in jobs}


def unpark(job: Job) -> None:
    """Its attempt is with Ray after all."""
    if job.hold == "parked":
        job.hold, job.problem = None, ""


def chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    """The values, as many at a time as a statement takes."""
    left = iter(values)
    while some := list(islice(left, MAX_PARAMETERS)):
        yield some


def made(spec: JobSpec, hold: bool, array_index: int | None) -> Job:
    """A new job, which is not in the queue yet."""
    fields = {**spec.model_dump(), "after": {str(job): how for job, how in spec.after.items()}}
    now = time.time()
    held = "held" if hold else None
    return Job(**fields, submitted_at=now, waiting_since=now, hold=held, array_index=array_index)


def add(jobs: Sequence[Job], session: Session) -> None:
    """Add jobs in a few statements; those with a place in an array get the id of the first as its name."""
    session.add_all(jobs[:1])
    session.flush()
    for job in jobs:
        job.array_id = None if job.array_index is None else jobs[0].id
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        record_event(session, job.id, f"submitted with priority {job.priority} to queue {job.queue}")


def find_unfinished(session: Session, job_id: int) -> Job:
    """A job that waits or runs.

    Raises:
        InputError: there is none with this id, or it has ended.
    """
    job = find_job(session, job_id)
    if job.state in END_STATES:
        raise InputError(f"job {job_id}: has ended ({job.state}); allowed: a job that waits or runs")
    return job


def find_team(session: Session, name: str) -> Team:
    """A queue.

    Raises:
        InputError: there is none of this name.
    """
    team = session.get(Team, name)
    if team is None:
        names = ", ".join(session.scalars(select(Team.name).order_by(Team.name)))
        raise InputError(f"queue {name!r}: no such queue; allowed: {names} (`queues set NAME` makes one)")
    return team


def check_there(session: Session, job_ids: Iterable[int]) -> None:
    """Raise InputError if there is no job with one of these ids."""
    asked = sorted(job_ids)
    there = {job for some in chunks(asked) for job in session.scalars(select(Job.id).where(Job.id.in_(some)))}
    for missing in (job for job in asked if job not in there):
        find_job(session, missing)


def check_priority(team: Team, priority: int) -> None:
    """Raise InputError if a priority is above the queue's."""
    if team.max_priority is not None and priority > team.max_priority:
        raise InputError(f"--priority {priority}: queue {team.name} allows at most {team.max_priority}")


def asked_of(job: Job, attempt: Attempt) -> Asked | None:
    """What an attempt was asked to do."""
    if job.cancel_requested:
        return Asked(to="cancel")
    return Asked.model_validate({"to": attempt.asked, "reason": attempt.asked_reason}) if attempt.asked else None


def ask(session: Session, attempt: Attempt, asked: Asked, by: int | None = None) -> bool:
    """Ask an attempt to leave; False if it was asked before."""
    if attempt.asked is not None:
        return False
    attempt.asked, attempt.asked_at, attempt.asked_reason, attempt.asked_by = asked.to, time.time(), asked.reason, by
    job = find_job(session, attempt.job_id)
    job.reason = f"{asked.reason}; asked to leave"
    record_event(session, job.id, f"attempt {attempt.number} is asked to leave: {asked.reason}")
    if by is not None:
        record_event(session, by, f"job {job.id} is asked to make room for it")
    return True


def has_progressed(attempt: Attempt, ending: Ending, before: Sequence[Attempt]) -> bool:
    """Whether an attempt has saved more than those before it; the first that says how much it saved is believed.

    One that does not say is believed if it exits with 75, but not each time that it soon does so unasked.
    """
    if attempt.saved_step is None:
        soon = _left_soon(attempt, ending.exit_code, time.time())
        return ending.exit_code == PREEMPTED_EXIT_CODE and not (
            soon and before and _left_soon(before[-1], before[-1].exit_code, before[-1].ended_at or 0.0)
        )
    known = [each.saved_step for each in before if each.saved_step is not None]
    return not known or attempt.saved_step > max(known)


def _left_soon(attempt: Attempt, exit_code: int | None, ended_at: float) -> bool:
    unasked = exit_code == PREEMPTED_EXIT_CODE and attempt.asked is None and attempt.saved_step is None
    return unasked and 0 <= ended_at - attempt.began_at < SOON_S


def close(session: Session, attempt: Attempt, ending: Ending, reason: str, fault: bool) -> None:
    """End an attempt, and charge its queue for it."""
    now = time.time()
    attempt.status, attempt.exit_code, attempt.ended_at = ending.status, ending.exit_code, now
    attempt.reason, attempt.fault = reason, fault
    team = session.get(Team, find_job(session, attempt.job_id).queue)
    if team is not None:
        team.charge(attempt.share, attempt.began_at, now)


def end(session: Session, job: Job, state: str, reason: str) -> None:
    """End a job."""
    job.state, job.reason, job.reason_code, job.start_at, job.ended_at = state, reason, "", None, time.time()
    record_event(session, job.id, f"{state}: {reason}")


def record_event(session: Session, job_id: int, text: str) -> None:
    """Add a line to what has become of a job."""
    session.add(Event(job_id=job_id, at=time.time(), text=text))
