"""Which waiting jobs start now and where, which running ones have to make room, and why each of the others waits.

A pure function of what is known: the nodes, what runs, what waits. Gangs start whole or not at all.

Order. A job that others make room for comes first, then of each queue the one that has waited longest, if that is a
week or more. Queues (teams) below their guaranteed share come next, then the queue with the least (usage + share held
now) / weight, where usage is the share that it held, averaged with a half-life. Within a queue the highest priority
comes first, which grows by a point with each hour of waiting and each preemption; then the oldest job.

Reservations. A job that has to wait reserves the nodes on which it can start first and, where it is known when that is,
its place under limits; one that a limit keeps from starting reserves that place alone. Those behind it may start before
it where they cannot delay it: with their declared run time they end earlier, or they use what it does not need.

Preemption. A job that has to wait may ask others to make room: those of its own queue that started with a lower
priority than its own, and, as long as its queue stays within its guaranteed share, those of queues that hold more than
theirs. A job that a limit keeps from starting asks those that count for the limit. What waiting and preemptions add
protects a job, and takes nobody's place.

Back-off. A job that is tried again later reserves what it needs meanwhile, as far as limits would let it start then.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from cluster.forecast import Forecast
from cluster.limits import Group, Numbers
from cluster.placement import Amounts, Cluster, Demand, Node, Placement, Places, Sums, whole
from cluster.reasons import Reason
from cluster.resources import Kind, Shape, format_amount, format_gang

MAX_HOLD_S = 600.0  # the longest back-off
MAX_NAMED = 10  # jobs that one comes after
ROUNDING = 1e-9  # of a share
DEFAULT_QUEUE = "default"
WANT_ROOM = (Reason.PREEMPTING, Reason.OTHERS, Reason.RESOURCES, Reason.RESERVED)


@dataclass(frozen=True)
class Waiting:
    """A job that waits.

    Attributes:
        id: the job's id; ids increase in order of submission.
        shape: what it asks for.
        priority: higher goes first.
        queue: its queue.
        user: its user.
        since: since when it waits, in seconds since the epoch, as are all times here.
        held_until: it does not start before this time.
        stopped: why a person has to act before it can start, with the code; None if nobody has.
        after: jobs that have to end before it starts.
        max_runtime_s: it runs no longer than this; None if nothing is declared.
        preemptions: how many times it made room for others.
        owed: whether others have made room for it, or are about to, and it has not started since.
    """

    id: int
    shape: Shape
    priority: int = 0
    queue: str = DEFAULT_QUEUE
    user: str = ""
    since: float = 0.0
    held_until: float = 0.0
    stopped: tuple[Reason, str] | None = None
    after: tuple[int, ...] = ()
    max_runtime_s: float | None = None
    preemptions: int = 0
    owed: bool = False

    @property
    def rank(self) -> int:
        """Its priority among those that wait, without what waiting adds."""
        return self.priority + self.preemptions


@dataclass(frozen=True)
class Running:
    """A job that has an open attempt.

    Attributes:
        job: its id.
        usage: node -> resource -> amount: what it was given, or holds where that is more.
        began_at: when its attempt began.
        ends_at: when it ends at the latest; None if nothing is declared.
        rank: the priority that it started with: its own, with what waiting and preemptions had added.
        queue: its queue.
        user: its user.
        steps_to_lose: steps since its last checkpoint; None where it has not said.
        leaving: whether it was asked to stop.
    """

    job: int
    usage: Mapping[str, Mapping[str, float]]
    began_at: float = 0.0
    ends_at: float | None = None
    rank: float = 0.0
    queue: str = DEFAULT_QUEUE
    user: str = ""
    steps_to_lose: int | None = None
    leaving: bool = False


@dataclass(frozen=True)
class Terms:
    """What a queue may have. Shares are dominant shares: the largest part of any one of the cluster's resources.

    Attributes:
        weight: its part of the cluster, relative to the other queues'.
        guaranteed: the share that it gets back when others have borrowed it.
        maximum: the share that it never exceeds.
        max_running: how many of its jobs run at once; None for any number.
        max_running_per_user: how many of one user.
        usage: the share that it held, averaged over the past with a half-life.
    """

    weight: float = 1.0
    guaranteed: float = 0.0
    maximum: float = 1.0
    max_running: int | None = None
    max_running_per_user: int | None = None
    usage: float = 0.0


@dataclass(frozen=True)
class Policy:
    """What holds for all queues.

    Attributes:
        max_attempts: how many jobs run at once.
        hours_per_point: hours of waiting that count as a point of priority.
        min_run_s: no job is asked to make room before it ran this long.
        max_preemptions: how many jobs may be asked to make room now; the last one that needs room gets all of it.
        leave_s: how long a job takes to leave that was asked to.
        reservations: how many waiting jobs of different shapes reserve nodes.
        forecasts: of how many waiting jobs it is said when they are expected to start.
        overdue_s: of each queue, the job that has waited longest comes before the order of the queues after this.
        draining: whether nothing starts.
    """

    max_attempts: int = 200
    hours_per_point: float = 1.0
    min_run_s: float = 300.0
    max_preemptions: int = 10
    leave_s: float = 120.0
    reservations: int = 16
    forecasts: int = 100
    overdue_s: float = 7 * 86400.0
    draining: bool = False


@dataclass(frozen=True)
class Start:
    """A job that starts, and where.

    Attributes:
        job: its id.
        placement: where.
        share: the dominant share of the cluster that it is given.
    """

    job: int
    placement: Placement
    share: float


@dataclass(frozen=True)
class Preempt:
    """A job that has to make room, and for which one."""

    job: int
    by: int


@dataclass(frozen=True)
class Wait:
    """Why a job waits.

    Attributes:
        code: the reason.
        text: a sentence for people.
        start_at: when it is expected to start; None if that cannot be known.
    """

    code: Reason
    text: str
    start_at: float | None = None


@dataclass(frozen=True)
class Round:
    """What is to be done.

    Attributes:
        starts: the jobs to start, in order.
        preempts: the jobs to ask to make room.
        waits: job -> why it waits, for all others.
    """

    starts: list[Start] = field(default_factory=list[Start])
    preempts: list[Preempt] = field(default_factory=list[Preempt])
    waits: dict[int, Wait] = field(default_factory=dict[int, Wait])


@dataclass(frozen=True)
class _Reservation:
    """Nodes that wait for a job.

    Attributes:
        job: the job.
        start_at: when it starts at the latest; infinite where run times are not declared.
        spare: what it leaves of what will be free then; those who start before may use that for as long as they like.
        ended: which of those that run have ended by then.
    """

    job: Waiting
    start_at: float
    spare: Amounts
    ended: frozenset[int]


def decide(
    nodes: Sequence[Node],
    running: Sequence[Running],
    waiting: Sequence[Waiting],
    terms: Mapping[str, Terms],
    policy: Policy,
    now: float,
) -> Round:
    """What is to be done with the waiting jobs.

    Args:
        nodes: the live nodes.
        running: the jobs that have an open attempt.
        waiting: the others, in any order.
        terms: those of each queue; a queue that is missing has the default ones.
        policy: what holds for all queues.
        now: the time, in seconds since the epoch.
    """
    return _Admission(nodes, running, waiting, terms, policy, now).round()


_Group = str | tuple[str, str] | None  # a queue's jobs, its jobs of a user, or all
ONE = np.ones(1)


class _Admission:
    """One round: `free` and the shares change as jobs are admitted."""

    def __init__(
        self,
        nodes: Sequence[Node],
        running: Sequence[Running],
        waiting: Sequence[Waiting],
        terms: Mapping[str, Terms],
        policy: Policy,
        now: float,
    ) -> None:
        self.waiting, self.policy, self.now = waiting, policy, now
        named = {name for job in running for amounts in job.usage.values() for name in amounts}
        self.cluster = Cluster(nodes, {job.shape for job in waiting}, named)
        self.running = sorted(running, key=self._end)
        self.ends = [self._end(job) for job in self.running]
        self.usages = [self.cluster.amounts(job.usage) for job in self.running]
        nothing = np.zeros_like(self.cluster.usable)
        self.free = self.cluster.usable - sum(self.usages, nothing)
        queues = {job.queue for job in (*running, *waiting)}
        self.terms = {queue: terms.get(queue, Terms()) for queue in queues}
        self.groups: dict[_Group, Group] = {group: Group(1) for job in (*running, *waiting) for group in _groups(job)}
        self.groups[None] = Group(1)
        self.groups.update({queue: Group(1 + nothing.shape[1]) for queue in queues})
        self.shares = dict.fromkeys(queues, 0.0)
        for job, end, used in zip(self.running, self.ends, self.usages, strict=True):
            self._add(job.job, job, end, whole(used))
        self.result = Round()
        self.reservations: list[_Reservation] = []
        self._demands: dict[Shape, list[Demand]] = {}
        self._gangs: dict[tuple[Shape, str], Demand | Wait] = {}  # what a queue's jobs of a shape take, or why nothing
        self._blocked: dict[tuple[Shape, int], tuple[float, Wait]] = {}  # the shortest run time that waits, and why
        self._lower: dict[tuple[str, int, bool], list[int]] = {}
        self._seen: set[tuple[object, ...]] = set()  # kinds of jobs of which it is known whether they ask others
        self._limited_kinds: set[tuple[object, ...]] = set()
        self._asks = self._promises = 0
        others = self.cluster.total - self.cluster.usable  # may leave too, nobody knows when
        self._admitted: list[tuple[float, Amounts]] = [(np.inf, others)]
        self._claims = {job.id: job for job in waiting if job.owed}  # for which others have made room, or do
        self._leaving = {index for index, job in enumerate(self.running) if job.leaving}
        self._timeline: tuple[list[float], list[Amounts]] | None = None
        self._foreseen: list[Waiting] = []

    def round(self) -> Round:
        ahead = 0
        for job in self._in_order():
            wait = self._ineligible(job) or self._backs_off(job) or self._limited(job) or self._start_or_wait(job)
            if wait is not None:
                self.result.waits[job.id] = _behind(wait, ahead)
                ahead += wait.code in WANT_ROOM
                if wait.code in WANT_ROOM or wait.code == Reason.BACK_OFF:
                    self._foreseen.append(job)
        self._forecast()
        return self.result

    def _forecast(self) -> None:
        """Say when those that wait for room are expected to start."""
        told = self._foreseen[: self.policy.forecasts]
        forecast = Forecast(self.cluster, self.free, self.now, self._in_time()) if told else None
        for index, job in enumerate(self._foreseen):
            start_at, wait = None, self.result.waits[job.id]
            if forecast is not None and index < len(told):
                held_until = job.held_until if wait.code == Reason.BACK_OFF else None
                start_at = forecast.start(job.shape, self._demand(job), _runs_s(job), held_until)
            if wait.code not in (Reason.PREEMPTING, Reason.BACK_OFF):
                self.result.waits[job.id] = replace(wait, start_at=start_at)

    # ------------------------------------------------------------------ order

    def _in_order(self) -> Iterator[Waiting]:
        """The jobs, the next one chosen by what has been admitted until then."""
        owed = [job for job in self.waiting if job.owed]  # or those who made room would take it themselves
        first = [*sorted(owed, key=lambda job: (-job.rank, job.id)), *self._overdue()]
        yield from first
        passed = {job.id for job in first}
        lines: dict[str, list[tuple[float, int, Waiting]]] = {}
        for job in self.waiting:
            if job.id in passed:
                continue
            lines.setdefault(job.queue, []).append((-(job.rank + self._age(job)), job.id, job))
        for line in lines.values():
            heapq.heapify(line)
        while lines:
            queue = min(lines, key=self._turn)
            yield heapq.heappop(lines[queue])[2]
            if not lines[queue]:
                del lines[queue]

    def _overdue(self) -> list[Waiting]:
        """Of each queue the job that has waited longest, if that is too long: others may have new ones all the time."""
        oldest: dict[str, Waiting] = {}
        for job in self.waiting:
            late = self.now - job.since >= self.policy.overdue_s and not job.owed
            if late and not (self._ineligible(job) or self._over_a_limit(job)):
                oldest[job.queue] = min(job, oldest.get(job.queue, job), key=lambda job: (job.since, job.id))
        return sorted(oldest.values(), key=lambda job: (job.since, job.id))

    def _age(self, job: Waiting) -> float:
        return points(self.now - job.since, self.policy)

    def _turn(self, queue: str) -> tuple[bool, float, str]:
        terms, share = self.terms[queue], self.shares[queue]
        return share >= terms.guaranteed - ROUNDING, (terms.usage + share) / terms.weight, queue

    # ------------------------------------------------------------------ reasons of the job's own

    def _ineligible(self, job: Waiting) -> Wait | None:
        if self.policy.draining:
            return Wait(Reason.DRAINING, "the queue drains; `python -m cluster drain --off` lets jobs start")
        if job.stopped:
            return Wait(*job.stopped)
        if job.after:
            more = f" and {len(job.after) - MAX_NAMED} more" if len(job.after) > MAX_NAMED else ""
            return Wait(Reason.DEPENDENCY, f"waits for job {', '.join(map(str, job.after[:MAX_NAMED]))}{more}")
        return self._never(job)

    def _backs_off(self, job: Waiting) -> Wait | None:
        """Why a job is not tried again yet; nobody takes its place meanwhile."""
        if not self.now < job.held_until <= self.now + MAX_HOLD_S:  # or the clock was set back since
            return None
        if self._over_a_limit(job, self._ended_by(job.held_until)) is None:
            self._reserve(job, job.held_until)
        clock = datetime.fromtimestamp(job.held_until).astimezone().strftime("%H:%M:%S")
        return Wait(Reason.BACK_OFF, f"its last attempt failed; it is tried again from {clock}", job.held_until)

    def _never(self, job: Waiting) -> Wait | None:
        """Why the nodes, or its queue, could not hold a job even if nothing else ran."""
        found = self._gang(job)
        return found if isinstance(found, Wait) else None

    def _gang(self, job: Waiting) -> Demand | Wait:
        """What a job takes: the first of its alternatives that the nodes and its queue could hold."""
        key = job.shape, job.queue
        if key not in self._gangs:
            if job.shape not in self._demands:
                self._demands[job.shape] = self.cluster.demands(job.shape)
            demands, terms = self._demands[job.shape], self.terms[job.queue]
            text = impossible(self.cluster, job.shape, demands, job.queue, terms)
            self._gangs[key] = Wait(Reason.IMPOSSIBLE, text) if text else next(_within(self.cluster, demands, terms))
        return self._gangs[key]

    def _demand(self, job: Waiting) -> Demand:
        """What a job takes that is not impossible."""
        found = self._gang(job)
        assert isinstance(found, Demand)
        return found

    def _limited(self, job: Waiting) -> Wait | None:
        """Why a limit keeps a job from starting; those whose leaving would satisfy it may be asked to make room."""
        wait = self._over_a_limit(job)
        if wait is None:
            return None
        made = self._make_room(job)
        if made is None:
            self._await_others(job)
        return made or wait

    def _await_others(self, job: Waiting) -> None:
        """Keep for a job what others of its queue give back of a limit, where it is known when that is enough."""
        kind = job.shape, job.queue, job.user
        if kind in self._limited_kinds or len(self._limited_kinds) >= self.policy.reservations:
            return
        self._limited_kinds.add(kind)
        ends = sorted(end for end in self.ends if np.isfinite(end))
        enough = bisect_left(ends, True, key=lambda end: self._over_a_limit(job, self._ended_by(end)) is None)
        if enough < len(ends):
            self._promise(job, ends[enough], (job.queue, (job.queue, job.user)))

    def _over_a_limit(self, job: Waiting, gone: Collection[int] = ()) -> Wait | None:
        """Why a limit keeps a job from starting once some running ones have left."""
        terms, queue = self.terms[job.queue], job.queue
        if terms.max_running is not None and (text := self._reached(queue, terms.max_running, job, gone)):
            return Wait(Reason.QUEUE_RUNNING, f"queue {queue} {text}")
        by_user = terms.max_running_per_user
        if by_user is not None and (text := self._reached((queue, job.user), by_user, job, gone)):
            return Wait(Reason.USER_RUNNING, f"{job.user}, in queue {queue}, {text}")
        if terms.maximum < 1:
            share = self.cluster.share(self._most(queue, job, gone)[1:] + self._demand(job).total)
            if share > terms.maximum + ROUNDING:
                text = f"queue {queue} would hold {share:.0%} of the cluster; its maximum is {terms.maximum:.0%}"
                return Wait(Reason.QUEUE_MAXIMUM, text)
        text = self._reached(None, self.policy.max_attempts, job, gone)
        return Wait(Reason.ATTEMPTS, f"the cluster {text}") if text else None

    def _reached(self, group: _Group, limit: int, job: Waiting, gone: Collection[int]) -> str | None:
        """How a limit of jobs that run at once is reached, in words."""
        now = self.groups[group].now[0]
        if now + self.groups[group].promised < limit:
            return None
        count = self._most(group, job, gone)[0]
        if count < limit:
            return None
        how = f"runs {now:.0f} jobs" if now >= limit else f"will run {count:.0f} jobs once those ahead start"
        return f"{how}; allowed at once: {limit}"

    def _most(self, group: _Group, job: Waiting, gone: Collection[int]) -> Numbers:
        """What counts beside a job while it runs: how many jobs, and for a queue what they hold."""
        left = [self.running[index].job for index in gone]
        return self.groups[group].most(job.id, self.now + _runs_s(job), left)

    # ------------------------------------------------------------------ room

    def _start_or_wait(self, job: Waiting) -> Wait | None:
        demand, runs_s = self._demand(job), _runs_s(job)
        key = job.shape, demand.gang
        shortest_s, wait = self._blocked.get(key, (np.inf, None))
        if wait is None or runs_s < shortest_s:  # what is free only shrinks within a round, least for the shortest
            room = self._room(self.free, job)
            places = self.cluster.place(demand, room)
            if places is not None:
                self._admit(job, demand, places)
                return None
            wait = self._wait(job, demand)
            some_could = wait.code == Reason.RESERVED  # a shorter one, which delays nobody
            self._blocked[key] = runs_s if some_could else 0.0, Wait(wait.code, wait.text)
        return (self._make_room(job) if wait.code == Reason.RESOURCES else None) or wait

    def _room(self, free: Amounts, job: Waiting) -> Amounts:
        """What a job may take now of what is free without delaying those ahead of it."""
        for each in self.reservations:
            if not self._ends_before(job, each):
                free = np.minimum(free, each.spare)
        return free

    def _ends_before(self, job: Waiting, reservation: _Reservation) -> bool:
        return self.now + _runs_s(job) <= reservation.start_at < np.inf

    def _admit(self, job: Waiting, demand: Demand, places: Places) -> None:
        self.free = self.free - places.taken
        self.reservations = [
            each if self._ends_before(job, each) else replace(each, spare=each.spare - places.taken)
            for each in self.reservations
        ]
        self._admitted.append((self.now + _runs_s(job), places.taken))
        self._timeline = None
        self._add(job.id, job, self.now + _runs_s(job), whole(places.taken))
        placement, share = self.cluster.assign(demand, job.shape, places), self.cluster.share(whole(places.taken))
        self.result.starts.append(Start(job.id, placement, share))

    def _add(self, number: int, job: Waiting | Running, end: float, held: Sums) -> None:
        for group in _groups(job):
            self.groups[group].run(number, end, _numbers(group, held))
        self.shares[job.queue] = self.cluster.share(self.groups[job.queue].now[1:])

    def _wait(self, job: Waiting, demand: Demand) -> Wait:
        if self.cluster.place(demand, self.free) is not None:
            ahead = next((each.job.id for each in self.reservations if self._is_delayed(each, job, demand)), None)
            who = f"job {ahead}" if ahead is not None else "those"
            return Wait(Reason.RESERVED, f"there is room, but {who} ahead of it could be delayed")
        start_at = self._reserve(job)
        if self.cluster.place(demand, self.cluster.usable) is None:
            return Wait(Reason.OTHERS, f"{self._lack(demand, self.cluster.usable)}; the rest is held outside the queue")
        return Wait(Reason.RESOURCES, self._lack(demand, self.free), start_at)

    def _is_delayed(self, reservation: _Reservation, job: Waiting, demand: Demand) -> bool:
        if self._ends_before(job, reservation):
            return False
        return self.cluster.place(demand, np.minimum(self.free, reservation.spare)) is None

    def _lack(self, demand: Demand, free: Amounts) -> str:
        """What is missing, in words."""
        for part in demand.parts or (demand.driver,):
            copies = self.cluster.copies(part.kind, free)
            if copies < part.count:
                name, most, node = self.cluster.most_free(part.kind, free)
                asked = dict(part.kind.amounts)[name] / 10_000
                if copies == 0:
                    has = f"{format_amount(name, most)} on {node}" if most else "none"
                    return f"needs {format_amount(name, asked)} on one node; the largest free block is {has}"
                return f"needs {part.count} x ({part.kind}); there is room for {copies}"
        asked = format_gang([part.kind for part in demand.parts for _ in range(part.count)] or [demand.driver.kind])
        return f"needs {asked} at once; there is not room for all of it"

    # ------------------------------------------------------------------ reservations

    def _end(self, job: Running) -> float:
        """When a running job's resources are free at the latest."""
        if job.leaving:
            return self.now + self.policy.leave_s
        return max(job.ends_at, self.now) if job.ends_at is not None else np.inf

    def _ended_by(self, at: float) -> frozenset[int]:
        """Those that run now and have ended, or left, by a time."""
        return frozenset(index for index, end in enumerate(self.ends) if end <= at)

    def _times(self) -> tuple[list[float], list[Amounts]]:
        """Now, and each time at which something ends, in order; and what is free from then on."""
        if self._timeline is None:
            ends = self._in_time()
            free = [*itertools.accumulate((used for _, used in ends), initial=self.free)]
            self._timeline = [-np.inf, *(end for end, _ in ends)], free
        return self._timeline

    def _in_time(self) -> list[tuple[float, Amounts]]:
        """What ends, in order of time, and what each gives back."""
        return sorted([*zip(self.ends, self.usages, strict=True), *self._admitted], key=lambda each: each[0])

    def _reserve(self, job: Waiting, not_before: float | None = None) -> float | None:
        """Reserve the nodes where a job can start first, in place of others; returns when, None if that is not known.

        Args:
            job: the job.
            not_before: when it may start at the earliest; None for one for which there is no room now, of which only
                some reserve.
        """
        if not_before is None and len(self.reservations) - self._promises >= self.policy.reservations:
            return None
        demand, (ends, free_at) = self._demand(job), self._times()
        others = [each for each in self.reservations if each.job.id != job.id]
        low, high, found = 1, len(ends), None  # when, and what is left then
        if not_before is not None:
            low = bisect_right(ends, not_before) - 1
        while low < high:
            middle = (low + high) // 2
            last = bisect_right(ends, ends[middle]) - 1  # of those who end together
            spares = [self._spare_at(each, last, ends, free_at) for each in others]
            room: Amounts = np.minimum.reduce([free_at[last], *spares])
            places = self.cluster.place(demand, room, self.cluster.busy(room, self.free))
            if places is None:
                low = last + 1
            else:
                found, high = (max(ends[middle], not_before or 0.0), room - places.taken), middle
        if found is None:
            return None
        start_at, spare = found
        self.reservations = [*others, _Reservation(job, start_at, spare, self._ended_by(start_at))]
        self._promises += not_before is not None
        if not np.isfinite(start_at):
            return None
        self._promise(job, start_at, _groups(job))
        return start_at

    def _promise(self, job: Waiting, start_at: float, groups: Iterable[_Group]) -> None:
        for group in groups:
            self.groups[group].promise(job.id, start_at, _numbers(group, self._demand(job).total))

    @staticmethod
    def _spare_at(reservation: _Reservation, end: int, ends: Sequence[float], free_at: Sequence[Amounts]) -> Amounts:
        """What a job ahead leaves once those that run have ended, up to one of their ends."""
        until = bisect_right(ends, reservation.start_at) - 1
        return reservation.spare if end <= until else reservation.spare + free_at[end] - free_at[until]

    # ------------------------------------------------------------------ preemption

    def _may_preempt(self, job: Waiting) -> bool:
        """Whether running jobs could make room for this one; a kind of job asks once in a round, and few kinds do."""
        user = job.user if self.terms[job.queue].max_running_per_user is not None else None
        key = job.shape, job.queue, user, job.priority
        if key in self._seen or self._asks >= self.policy.reservations:
            return False
        self._seen.add(key)
        lower = self._lower_than(job)
        if not lower or self._over_a_limit(job, {*lower, *self._leaving}) is not None:
            return False
        self._asks += 1
        return True

    def _lower_than(self, job: Waiting) -> list[int]:
        """Those that could be asked to make room for a job, or were: first those that lose least."""
        reclaims = self._reclaims(job)
        key = job.queue, job.priority, reclaims
        if key not in self._lower:
            able: list[tuple[tuple[object, ...], int]] = []
            for index, each in enumerate(self.running):
                young = 0 <= self.now - each.began_at < self.policy.min_run_s and not each.leaving
                if not young and (each.rank < job.priority if each.queue == job.queue else reclaims):
                    order = (each.rank, each.steps_to_lose is None, -each.began_at, each.steps_to_lose or 0, each.job)
                    able.append((order, index))
            self._lower[key] = [index for _, index in sorted(able)]
        return self._lower[key]

    def _reclaims(self, job: Waiting) -> bool:
        """Whether the job's queue would stay within what it is guaranteed."""
        guaranteed = self.terms[job.queue].guaranteed
        if not guaranteed:
            return False
        claims = {**self._claims, job.id: job}.values()
        gangs = [self._gang(each) for each in claims if each.queue == job.queue]
        wanted = sum((gang.total for gang in gangs if isinstance(gang, Demand)), self.groups[job.queue].now[1:])
        return self.cluster.share(wanted) <= guaranteed + ROUNDING

    def _make_room(self, job: Waiting) -> Wait | None:
        """Ask others to make room for a job, or see that they do; None if none can, or it starts as soon without.

        As few as will do: first the lowest, then those that write checkpoints, then the newest, then those with the
        fewest steps to lose. What they leave is reserved for it.
        """
        if not self._may_preempt(job):
            return None
        demand, leaving = self._demand(job), sorted(self._leaving)
        if leaving and self._fits_without(job, demand, leaving):
            return self._preempting(job, leaving)
        if len(self.result.preempts) >= self.policy.max_preemptions:
            return None
        if self._fits_without(job, demand, self._ended_by(self.now + self.policy.leave_s)):
            return None
        able = [index for index in self._lower_than(job) if index not in self._leaving]
        chosen = self._enough(job, demand, leaving, able)
        if not chosen:
            return None
        self.result.preempts.extend(Preempt(self.running[index].job, job.id) for index in chosen)
        self._leaving.update(chosen)
        for index in chosen:
            self._will_leave(index)
        self._claims[job.id] = job
        return self._preempting(job, [*leaving, *chosen])

    def _will_leave(self, index: int) -> None:
        """A running job ends sooner, for those that wait too."""
        job, used, end = self.running[index], self.usages[index], self.now + self.policy.leave_s
        self.ends[index], self._timeline = end, None
        self._add(job.job, job, end, whole(used))
        self.reservations = [
            each
            if each.start_at < end or index in each.ended
            else replace(each, spare=each.spare + used, ended=each.ended | {index})
            for each in self.reservations
        ]

    def _preempting(self, job: Waiting, leaving: Sequence[int]) -> Wait:
        self._reserve(job, self.now + self.policy.leave_s)
        ids = ", ".join(map(str, sorted(self.running[index].job for index in leaving)))
        who = f"jobs {ids} give their" if len(leaving) > 1 else f"job {ids} gives its"
        return Wait(Reason.PREEMPTING, f"{who} machines back", self.now + self.policy.leave_s)

    def _enough(self, job: Waiting, demand: Demand, leaving: Sequence[int], able: Sequence[int]) -> list[int]:
        """The first of those that are able to leave that together make room; none if all of them do not."""
        shares, chosen = dict(self.shares), list[int]()
        for index in able:
            queue = self.running[index].queue
            if queue != job.queue and shares[queue] <= self.terms[queue].guaranteed + ROUNDING:
                continue  # it holds no more than is its own
            chosen.append(index)
            shares[queue] -= self.cluster.share(whole(self.usages[index]))
        low, high = 1, len(chosen) + 1  # how many of them it takes
        while low < high:
            middle = (low + high) // 2
            if self._fits_without(job, demand, [*leaving, *chosen[:middle]]):
                high = middle
            else:
                low = middle + 1
        if low > len(chosen):
            return []
        chosen = chosen[:low]
        for index in chosen[:-1]:  # those that are not needed after all stay
            fewer = [each for each in chosen if each != index]
            if self._fits_without(job, demand, [*leaving, *fewer]):
                chosen = fewer
        return chosen

    def _fits_without(self, job: Waiting, demand: Demand, gone: Collection[int]) -> bool:
        """Whether a job could start, and delay none ahead of it, once some running ones have left."""
        if self._over_a_limit(job, gone) is not None:
            return False
        room = sum((self.usages[index] for index in gone), self.free)
        for each in self.reservations:
            if each.job.id == job.id:
                break
            late = [self.usages[index] for index in gone if index not in each.ended]
            room: Amounts = np.minimum(room, sum(late, each.spare))
        return self.cluster.place(demand, room) is not None


def impossible(cluster: Cluster, shape: Shape, demands: Sequence[Demand], queue: str, terms: Terms) -> str | None:
    """Why a job could never start, in words: what it asks for that the nodes do not have, or its queue may not hold.

    Args:
        cluster: the nodes.
        shape: what it asks for.
        demands: the alternatives that the nodes could hold.
        queue: its queue.
        terms: the queue's.
    """
    if any(_within(cluster, demands, terms)):
        return None
    if demands:
        share = min(cluster.share(demand.total) for demand in demands)
        return f"asks for {share:.0%} of the cluster; the maximum of queue {queue} is {terms.maximum:.0%}"
    gangs = [gang or (shape.driver,) for gang in shape.gangs]
    wanted = " or ".join(format_gang(gang) for gang in gangs)
    if any(shape.gangs) and cluster.demands(Shape(shape.gangs, Kind(()))):  # it is the driver that does not fit
        gangs.append((shape.driver,))
        wanted += f", and {shape.driver} for its driver"
    names = sorted({name for gang in gangs for kind in gang for name, _ in kind.amounts})
    labels = sorted({name for gang in gangs for kind in gang for name, _ in kind.labels})
    text = f"asks for {wanted}; the nodes have {cluster.offers(names)}"
    if not labels:
        return text
    values = {
        name: sorted({node.labels[name] for node in cluster.nodes if name in node.labels}) or ["no value"]
        for name in labels
    }
    return text + "".join(f"; {name} is {', '.join(found)} there" for name, found in values.items())


def points(seconds: float, policy: Policy) -> float:
    """How much so long a wait adds to a priority."""
    return max(0.0, seconds) / 3600 / policy.hours_per_point


def _within(cluster: Cluster, demands: Sequence[Demand], terms: Terms) -> Iterator[Demand]:
    """Those that a queue may hold, if it held nothing else."""
    return (demand for demand in demands if cluster.share(demand.total) <= terms.maximum + ROUNDING)


def _groups(job: Waiting | Running) -> tuple[_Group, ...]:
    """As what a job counts where limits are: as one of all, of its queue, and of its user's there."""
    return None, job.queue, (job.queue, job.user)


def _numbers(group: _Group, held: Sums) -> Numbers:
    """What a job counts: one job, and in its queue what it holds."""
    return np.append(1.0, held) if isinstance(group, str) else ONE


def _runs_s(job: Waiting) -> float:
    return np.inf if job.max_runtime_s is None else job.max_runtime_s


def _behind(wait: Wait, ahead: int) -> Wait:
    if wait.code not in WANT_ROOM or wait.code == Reason.PREEMPTING or not ahead:
        return wait
    return Wait(wait.code, f"{wait.text}; {ahead} job{'s' if ahead > 1 else ''} ahead", wait.start_at)
