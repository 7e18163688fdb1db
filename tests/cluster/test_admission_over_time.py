"""Rounds of admission one after another: what is allowed is never exceeded, and everything runs in the end."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from cluster.admission import Policy, Running, Terms, Waiting, decide
from cluster.dispatcher import placed
from cluster.placement import Node
from cluster.reasons import Reason
from cluster.resources import Shape
from tests.cluster.test_admission import cpus, gang

BEGIN, LATE_S = 1_000_000.0, 400.0
SHAPES = (cpus(1), cpus(2), cpus(4), cpus(8), cpus(2, 2), gang({"GPU": 1, "CPU": 1}), gang({"GPU": 2}))


@dataclass
class Work:
    """A job: what it asks for and declares, how long it takes, and where it is."""

    shape: Shape
    queue: str
    user: str
    priority: int
    declared_s: float | None
    takes_s: float
    comes_at: float
    fails: bool
    since: float = BEGIN
    held_until: float = 0.0
    preemptions: int = 0
    asked_for_at: float | None = None  # since when others leave for it
    began: float | None = None
    rank: float = 0.0
    usage: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    leaves_at: float | None = None


class Simulation:
    """A few nodes, three queues and some jobs, by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.nodes = [
            Node(name, {"CPU": chance.choice([2.0, 4.0, 8.0]), "GPU": chance.choice([0.0, 0.0, 1.0, 2.0])}, name=name)
            for name in "abc"[: chance.randint(1, 3)]
        ]
        self.terms = {
            queue: Terms(
                chance.choice([1, 2]), chance.choice([0, 0, 0.3]), chance.choice([1, 1, 0.5, 0.7]),
                chance.choice([None, None, 1, 2, 3]), chance.choice([None, None, 1, 2]),
            )
            for queue in "xyz"
        }  # fmt: skip
        self.policy = Policy(
            chance.choice([200, 1, 2, 4]), min_run_s=chance.choice([0, 300]), reservations=chance.choice([16, 2])
        )
        self.works = {number: self._work() for number in range(1, chance.randint(4, 14))}
        self.now, self.done = BEGIN, set[int]()

    def _work(self) -> Work:
        chance = self.chance
        declared_s, takes_s = chance.choice([None, 50, 200, 1000, 3000]), chance.choice([30, 100, 500, 2500])
        return Work(
            chance.choice(SHAPES), chance.choice("xyz"), chance.choice("pq"), chance.choice([0, 0, 1, 3]), declared_s,
            min(takes_s, declared_s or takes_s), BEGIN + chance.choice([0, 0, 0, 400, 1500]), chance.random() < 0.25,
        )  # fmt: skip

    def run(self) -> None:
        """Until all that is possible has ended."""
        for _ in range(600):
            if len(self.done) == len(self.works):
                return
            self._round()
        pytest.fail(f"these never end: {sorted(set(self.works) - self.done)}")

    def _round(self) -> None:
        here = {number: work for number, work in self.works.items() if number not in self.done}
        waiting = [
            Waiting(number, work.shape, work.priority, work.queue, work.user, work.since, work.held_until,
                    max_runtime_s=work.declared_s, preemptions=work.preemptions, owed=work.asked_for_at is not None)
            for number, work in here.items()
            if work.began is None and work.comes_at <= self.now
        ]  # fmt: skip
        running = [
            Running(number, work.usage, work.began, None if work.declared_s is None else work.began + work.declared_s,
                    work.rank, work.queue, work.user, leaving=work.leaves_at is not None)
            for number, work in here.items()
            if work.began is not None
        ]  # fmt: skip
        decided = decide(self.nodes, running, waiting, self.terms, self.policy, self.now)
        codes = {number: wait.code for number, wait in decided.waits.items()}
        self.done |= {number for number, code in codes.items() if code == Reason.IMPOSSIBLE}
        for start in decided.starts:
            work = here[start.job]
            assert self.now - (work.asked_for_at or self.now) <= LATE_S, "it starts where others made room for it"
            work.began, work.asked_for_at, work.leaves_at = self.now, None, None
            work.usage = placed(start, work.shape).usage
            work.rank = work.priority + work.preemptions + (self.now - work.since) / 3600
        idle = not any(work.began is not None for work in here.values())
        assert not (idle and codes) or {Reason.BACK_OFF, Reason.IMPOSSIBLE} & set(codes.values()), "something runs"
        self._check()
        for preempt in decided.preempts:
            here[preempt.job].leaves_at = self.now + self.chance.choice([5, 60, 119])
            here[preempt.by].asked_for_at = here[preempt.by].asked_for_at or self.now
        self._go_on()

    def _check(self) -> None:
        running = [work for number, work in self.works.items() if work.began is not None and number not in self.done]
        assert len(running) <= self.policy.max_attempts
        held, of_queue = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for work in running:
            for node, amounts in work.usage.items():
                held.update({(node, name): amount for name, amount in amounts.items()})
                of_queue.update({(work.queue, name): amount for name, amount in amounts.items()})
        assert all(held[node.id, name] <= node.total[name] for node in self.nodes for name in node.total)
        by_queue = Counter(work.queue for work in running)
        by_user = Counter((work.queue, work.user) for work in running)
        for queue, terms in self.terms.items():
            assert by_queue[queue] <= (terms.max_running or 99)
            assert all(by_user[queue, user] <= (terms.max_running_per_user or 99) for user in "pq")
            for name in ("CPU", "GPU"):
                assert of_queue[queue, name] <= terms.maximum * sum(node.total[name] for node in self.nodes) + 1e-9

    def _go_on(self) -> None:
        """To the next thing that happens, or a while."""
        here = {number: work for number, work in self.works.items() if number not in self.done}
        running = {number: work for number, work in here.items() if work.began is not None}
        ends = {number: (work.began or 0.0) + work.takes_s for number, work in running.items()}
        times = [*ends.values(), *(work.leaves_at for work in running.values() if work.leaves_at is not None)]
        times += [time for work in here.values() for time in (work.comes_at, work.held_until) if time > self.now]
        self.now = max(self.now + 0.5, min([*times, self.now + 150]))
        for number, work in running.items():
            if ends[number] <= self.now and not work.fails:
                self.done.add(number)
            elif ends[number] <= self.now or (work.leaves_at or 1e18) <= self.now:
                if ends[number] <= self.now:
                    work.fails, work.held_until = False, self.now + 30
                else:
                    work.preemptions, work.takes_s = work.preemptions + 1, max(20, ends[number] - self.now)
                work.began, work.since = None, self.now


@pytest.mark.parametrize("seed", range(8))
def test_everything_runs_in_the_end_and_nothing_is_exceeded(seed: int):
    for number in range(60):
        Simulation(1000 * seed + number).run()
