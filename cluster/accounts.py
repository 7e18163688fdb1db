"""The queues (teams) that share the cluster: what each may have, and what it has used."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from sqlalchemy import func, select

from cluster.admission import DEFAULT_QUEUE, Terms
from cluster.database.tables import Attempt, Job, Team, held
from cluster.errors import InputError
from cluster.rows import find_team
from cluster.spec import END_STATES, PREEMPTED_EXIT_CODE
from cluster.store import Store


@dataclass
class Used:
    """What the jobs of a user, a queue or a name have used.

    Attributes:
        group: the user, the queue or the name.
        jobs: how many of them ran.
        cpu_hours: CPUs that they were given, times hours.
        gpu_hours: the same of GPUs.
        waited_s: mean time from submission to the first attempt, of those that began then.
        lost_steps: steps that were trained and not saved when an attempt ended, other than by exit 75.
        preemptions: how often they made room for others.
    """

    group: str
    jobs: int = 0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    waited_s: float = 0.0
    lost_steps: int = 0
    preemptions: int = 0


class Accounts:
    """The accounts of one queue's database."""

    def __init__(self, store: Store) -> None:
        """Reads nothing yet."""
        self._store = store

    def terms(self, now: float) -> dict[str, Terms]:
        """What each queue may have, and what it has used until `now`."""
        with self._store.session(write=False) as session:
            teams = session.scalars(select(Team)).all()
            open_ = session.execute(
                select(Job.queue, Attempt.share, Attempt.began_at).join(Job).where(Attempt.ended_at.is_(None))
            ).all()
        used = {team.name: team.usage_until(now) for team in teams}
        for queue, share, began in open_:
            if queue in used:
                used[queue] += held(share, now - began)
        return {
            team.name: Terms(
                team.weight, team.guaranteed, team.maximum, team.max_running, team.max_running_per_user, used[team.name]
            )
            for team in teams
        }

    def usage(self, by: str, since: float, now: float) -> list[Used]:
        """What was used between two times, the most first.

        Args:
            by: `user`, `queue` or `name`.
            since: the earlier time.
            now: the later one.
        """
        columns = (
            getattr(Job, by), Job.id, Job.submitted_at, Attempt.number, Attempt.began_at, Attempt.ended_at,
            Attempt.cpus, Attempt.gpus, Attempt.step, Attempt.saved_step, Attempt.asked_by, Attempt.status,
            Attempt.exit_code,
        )  # fmt: skip
        recent = (Attempt.ended_at.is_(None)) | (Attempt.ended_at > since)
        found: dict[str, Used] = {}
        jobs: dict[str, set[int]] = {}
        waits: dict[str, list[float]] = {}
        with self._store.session(write=False) as session:
            rows = session.execute(select(*columns).select_from(Attempt).join(Job).where(recent)).all()
        for group, job, submitted, number, began, ended, cpus, gpus, step, saved, asked_by, status, exit_code in rows:
            used = found.setdefault(group, Used(group))
            hours = max(0.0, (ended or now) - max(began, since)) / 3600
            used.cpu_hours += cpus * hours
            used.gpu_hours += gpus * hours
            used.preemptions += asked_by is not None
            if number == 1:
                waits.setdefault(group, []).append(began - submitted)
            if status not in (None, "succeeded") and exit_code != PREEMPTED_EXIT_CODE:
                used.lost_steps += max(0, (step or 0) - (saved or 0))
            jobs.setdefault(group, set()).add(job)
        for group, used in found.items():
            used.jobs = len(jobs[group])
            used.waited_s = mean(waits.get(group, [0.0]))
        return sorted(found.values(), key=lambda used: (-used.gpu_hours, -used.cpu_hours, used.group))

    def counts(self) -> dict[str, dict[str, int]]:
        """Queue -> state -> how many jobs, of those that have not ended."""
        query = select(Job.queue, Job.state, func.count(Job.id)).where(Job.state.not_in(END_STATES))
        found: dict[str, dict[str, int]] = {}
        with self._store.session(write=False) as session:
            for queue, state, number in session.execute(query.group_by(Job.queue, Job.state)):
                found.setdefault(queue, {})[state] = number
        return found

    def queues(self) -> Sequence[Team]:
        """The queues, by name."""
        with self._store.session(write=False) as session:
            return session.scalars(select(Team).order_by(Team.name)).all()

    def set_queue(self, name: str, **fields: float | None) -> Team:
        """Make a queue, or change one.

        Raises:
            InputError: the guaranteed shares of all queues would be more than the cluster, or one above its maximum.
        """
        with self._store.session() as session:
            team = session.get(Team, name)
            if team is None:
                team = Team(name=name, weight=1.0, guaranteed=0.0, maximum=1.0, usage=0.0, usage_at=0.0)
                session.add(team)
            for field, value in fields.items():
                setattr(team, field, value)
            session.flush()
            promised = session.scalars(select(func.sum(Team.guaranteed))).one()
            if promised > 1 + 1e-9:
                raise InputError(
                    f"queue {name}: the queues would be guaranteed {promised:.2f} of the cluster; allowed: 1"
                )
            if team.guaranteed > team.maximum:
                raise InputError(
                    f"queue {name}: guaranteed {team.guaranteed}, at most {team.maximum}; allowed: a maximum that is "
                    "not less"
                )
            return team

    def remove_queue(self, name: str) -> None:
        """Remove a queue that has no unfinished jobs.

        Raises:
            InputError: there is no such queue, it has such jobs, or it is the default one.
        """
        with self._store.session() as session:
            team = find_team(session, name)
            left = session.scalars(
                select(func.count(Job.id)).where(Job.queue == name, Job.state.not_in(END_STATES))
            ).one()
            if left or name == DEFAULT_QUEUE:
                why = f"has {left} unfinished jobs" if left else "is the one of jobs that name none"
                raise InputError(
                    f"queue {name}: {why}; allowed: a queue without unfinished jobs, other than {DEFAULT_QUEUE}"
                )
            session.delete(team)
