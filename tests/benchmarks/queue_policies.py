"""`python -m tests.benchmarks.queue_policies [--large] [--plot FILE]`: the queue's policy beside others, on one trace.

The trace is that of Lublin and Feitelson's model of rigid jobs (Journal of Parallel and Distributed Computing 63,
2003; the parameters without types of jobs), seeded. Its parameters, and those that the model does not have, are `TRACE`
below: they were committed before any policy was tuned, and are not to be tuned. A processor of the model is a GPU here,
eight on a node; inter-arrival times are scaled so that the jobs ask for `load` of the cluster.

- `fifo`: in order of submission; nobody passes the first that does not fit.
- `easy`: EASY backfilling: the first that waits has a reservation.
- `ray`: Ray Jobs as is: whatever fits starts, and what has waited 15 minutes fails.
- `queue`: `cluster.admission.decide` with five equal queues, priorities and preemption.

Fairness is Jain's index of the share that each team holds on average while it has jobs waiting. Results go to
docs/benchmarks.md by hand, with machine and date.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import gamma

from cluster.admission import Policy, Running, Terms, Waiting, decide
from cluster.placement import Cluster, Node
from cluster.resources import Bundle, Shape

TRACE: dict[str, Any] = {
    # Lublin and Feitelson, table of the parameters for all jobs together
    "serial": 0.244, "power_of_two": 0.576, "low": 0.8, "medium_below_high": 2.5, "first_stage": 0.86,
    "a1": 4.2, "b1": 0.94, "a2": 312.0, "b2": 0.03, "pa": -0.0054, "pb": 0.78, "longest": 12.0,
    "aarr": 10.2303, "barr": 0.4871, "anum": 8.1737, "bnum": 3.9631, "arar": 1.0225, "day_start": 11,
    # not in the model
    "seed": 2003, "load": 0.85, "teams": (0.5, 0.2, 0.1, 0.1, 0.1), "users_of_a_team": 4, "urgent": 0.05,
    "overestimate": (1.0, 5.0), "restart_s": 60.0, "checkpoint_s": 10.0,
}  # fmt: skip
GPUS = 8
RAY_GIVES_UP_S = 900.0
SHORTEST_S = 600.0  # of bounded slowdown
NO_DRIVER = Bundle(resources={})


@dataclass
class Work:
    """A job of the trace, and what becomes of it."""

    id: int
    at: float
    size: int
    runs_s: float
    declared_s: float
    team: int
    user: int
    priority: int
    shape: Shape
    left_s: float = 0.0
    first_start: float | None = None
    end: float | None = None
    failed: bool = False
    preemptions: int = 0
    lost_s: float = 0.0
    since: float = 0.0


@dataclass
class Open:
    """A running job."""

    work: Work
    usage: dict[str, dict[str, float]]
    began: float
    overhead_s: float
    leaves_at: float | None = None


@dataclass
class Outcome:
    """What a policy made of a trace."""

    name: str
    works: list[Work]
    used: float = 0.0
    until: float = 0.0
    held: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    backlog: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    waiting: list[int] = field(default_factory=list[int])


def trace(count: int, nodes: int) -> list[Work]:
    """`count` jobs for a cluster of so many nodes, in order of arrival."""
    chance, most = np.random.default_rng(TRACE["seed"]), nodes * GPUS
    high = math.log2(most)
    sizes: list[int] = []
    times: list[float] = []
    for _ in range(count):
        kind, size = chance.random(), 1
        if kind > TRACE["serial"]:
            medium = high - TRACE["medium_below_high"]
            first = chance.random() <= TRACE["first_stage"]
            power = chance.uniform(TRACE["low"], medium) if first else chance.uniform(medium, high)
            size = round(2 ** (round(power) if kind <= TRACE["serial"] + TRACE["power_of_two"] else power))
        sizes.append(min(max(size, 1), most))
        # the model's line for p is of machines with up to some hundred processors
        p = min(1.0, max(0.0, TRACE["pa"] * min(size, 128) + TRACE["pb"]))
        while True:
            a, b = ("a1", "b1") if chance.random() <= p else ("a2", "b2")
            exponent = chance.gamma(TRACE[a], TRACE[b])
            if exponent <= TRACE["longest"]:
                break
        times.append(math.exp(exponent))
    arrivals = _arrivals(chance, count)
    wanted = sum(size * seconds for size, seconds in zip(sizes, times, strict=True)) / most / TRACE["load"]
    scale = wanted / arrivals[-1]
    works: list[Work] = []
    shapes: dict[Shape, Shape] = {}  # equal ones are one object, as the dispatcher has them
    for index, (size, seconds) in enumerate(zip(sizes, times, strict=True)):
        team = int(chance.choice(len(TRACE["teams"]), p=TRACE["teams"]))
        bundles = [Bundle(resources={"GPU": float(GPUS)})] * (size // GPUS)
        rest = [Bundle(resources={"GPU": float(size % GPUS)})] if size % GPUS else []
        shape = Shape.of([[*bundles, *rest]], NO_DRIVER)
        works.append(
            Work(
                index + 1, arrivals[index] * scale, size, seconds, seconds * chance.uniform(*TRACE["overestimate"]),
                team, team * TRACE["users_of_a_team"] + int(chance.integers(TRACE["users_of_a_team"])),
                10 if chance.random() < TRACE["urgent"] else 0, shapes.setdefault(shape, shape), seconds,
                since=arrivals[index] * scale,
            )
        )  # fmt: skip
    return works


def _arrivals(chance: np.random.Generator, count: int) -> list[float]:
    """The model's arrivals: gamma-distributed points, spent on half-hours that cost what the time of the day costs."""
    edges = np.arange(TRACE["day_start"], TRACE["day_start"] + 49) - 0.5
    costs = np.diff(gamma.cdf(edges, TRACE["anum"], scale=TRACE["bnum"]))
    costs = np.roll(costs, TRACE["day_start"] - 1)
    costs /= costs.mean()
    found: list[float] = []
    points, bucket, passed = 0.0, 0, 0.0
    while len(found) < count:
        points += math.exp(chance.gamma(TRACE["aarr"] * TRACE["arar"], TRACE["barr"])) / 1800
        while points > costs[bucket]:
            points -= costs[bucket]
            bucket, passed = (bucket + 1) % 48, passed + 1800.0
        found.append(passed + 1800.0 * points / costs[bucket])
    return found


def simulate(name: str, works: Sequence[Work], nodes: Sequence[Node]) -> Outcome:
    """Let a policy run a trace to its end."""
    return _Simulation(name, works, nodes).run()


class _Simulation:
    """One policy, one trace; time goes from one event to the next."""

    def __init__(self, name: str, works: Sequence[Work], nodes: Sequence[Node]) -> None:
        self.name, self.nodes = name, nodes
        self.outcome = Outcome(name, [replace(work) for work in works])
        self.arriving = self.outcome.works[::-1]
        self.waiting: dict[int, Work] = {}
        self.running: dict[int, Open] = {}
        self.usage: defaultdict[int, float] = defaultdict(float)
        self.now = 0.0

    def run(self) -> Outcome:
        while self.arriving or self.waiting or self.running:
            self._pass_time(self._next())
            while self.arriving and self.arriving[-1].at <= self.now:
                work = self.arriving.pop()
                self.waiting[work.id] = work
            for job, each in list(self.running.items()):
                if _end(each) <= self.now + 1e-6:
                    del self.running[job]
                    _ended(each, self.now, self.waiting)
            if self.name == "ray":
                self._give_up()
            _admit(self.name, self.now, self.nodes, self.waiting, self.running, self.usage, len(self.nodes) * GPUS)
            self.outcome.waiting.append(len(self.waiting))
        self.outcome.until = self.now
        return self.outcome

    def _next(self) -> float:
        times = [_end(each) for each in self.running.values()]
        times += [work.at for work in self.arriving[-1:]]
        if self.name == "ray":
            times += [work.since + RAY_GIVES_UP_S for work in self.waiting.values()]
        assert times, f"{len(self.waiting)} jobs wait for ever"
        return min(times)

    def _pass_time(self, then: float) -> None:
        seconds, self.now = then - self.now, then
        teams = {work.team for work in self.waiting.values()}
        for team in teams:
            self.outcome.backlog[team] += seconds
        for each in self.running.values():
            held = each.work.size * seconds
            self.outcome.used += held
            self.usage[each.work.team] += held
            self.outcome.held[each.work.team] += held if each.work.team in teams else 0.0

    def _give_up(self) -> None:
        for work in [work for work in self.waiting.values() if self.now >= work.since + RAY_GIVES_UP_S]:
            work.failed, work.end = True, self.now
            del self.waiting[work.id]


def _end(each: Open) -> float:
    end = each.began + each.overhead_s + each.work.left_s
    return end if each.leaves_at is None else min(end, each.leaves_at)


def _ended(each: Open, now: float, waiting: dict[int, Work]) -> None:
    work = each.work
    done = max(0.0, now - each.began - each.overhead_s)
    if done >= work.left_s - 1e-6:
        work.end = now
        return
    lost = TRACE["checkpoint_s"] + min(each.overhead_s, now - each.began)
    work.left_s -= max(0.0, done - TRACE["checkpoint_s"])
    work.lost_s += lost * work.size
    work.preemptions += 1
    work.since = now
    waiting[work.id] = work


def _admit(
    name: str, now: float, nodes: Sequence[Node], waiting: dict[int, Work], running: dict[int, Open],
    usage_of: Mapping[int, float], total: int,
) -> None:  # fmt: skip
    if not waiting:
        return
    if name in ("fifo", "ray"):
        starts = _first_fit(name, nodes, waiting, running)
    else:
        ours = name == "queue"
        jobs = [
            Waiting(
                work.id, work.shape, work.priority if ours else 0, f"t{work.team}" if ours else "default",
                str(work.user), work.since if ours else now, max_runtime_s=work.declared_s,
                preemptions=work.preemptions if ours else 0,
            )
            for work in waiting.values()
        ]  # fmt: skip
        holding = [
            Running(
                job, each.usage, each.began, each.began + each.work.declared_s,
                each.work.priority + each.work.preemptions, f"t{each.work.team}" if ours else "default",
                steps_to_lose=0, leaving=each.leaves_at is not None,
            )
            for job, each in running.items()
        ]  # fmt: skip
        policy = Policy(10**6, forecasts=0) if ours else Policy(10**6, reservations=1, forecasts=0, max_preemptions=0)
        share = {team: usage_of.get(team, 0.0) / max(1.0, now) / total for team in range(len(TRACE["teams"]))}
        terms = {f"t{team}": Terms(usage=used) for team, used in share.items()} if ours else {}
        decided = decide(nodes, holding, jobs, terms, policy, now)
        for preempt in decided.preempts:
            running[preempt.job].leaves_at = now + TRACE["checkpoint_s"]
        starts = [(start.job, _usage(start.placement.bundles, waiting[start.job].shape)) for start in decided.starts]
    for job, usage in starts:
        work = waiting.pop(job)
        if work.first_start is None:
            work.first_start = now
        running[job] = Open(work, usage, now, TRACE["restart_s"] if work.preemptions else 0.0)


def _usage(bundles: Sequence[str], shape: Shape) -> dict[str, dict[str, float]]:
    usage: dict[str, dict[str, float]] = {}
    for node, kind in zip(bundles, shape.gangs[0], strict=True):
        given = usage.setdefault(node, {"GPU": 0.0})
        given["GPU"] += dict(kind.resources())["GPU"]
    return usage


def _first_fit(
    name: str, nodes: Sequence[Node], waiting: dict[int, Work], running: dict[int, Open]
) -> list[tuple[int, dict[str, dict[str, float]]]]:
    cluster = Cluster(nodes, {work.shape for work in waiting.values()})
    free = cluster.usable.copy()
    for each in running.values():
        free = free - cluster.amounts(each.usage)
    starts: list[tuple[int, dict[str, dict[str, float]]]] = []
    for work in sorted(waiting.values(), key=lambda work: work.id):
        [demand] = cluster.demands(work.shape)
        places = cluster.place(demand, free)
        if places is not None:
            free = free - places.taken
            starts.append((work.id, _usage(cluster.assign(demand, work.shape, places).bundles, work.shape)))
        elif name == "fifo":
            break
    return starts


def row(outcome: Outcome, total: int) -> dict[str, str]:
    """What is shown of a policy."""
    done = [work for work in outcome.works if not work.failed]
    waits = np.array([(work.first_start or 0.0) - work.at for work in done])
    urgent = [(work.first_start or 0.0) - work.at for work in done if work.priority]
    last = max(work.at for work in outcome.works)
    shares = [outcome.held[team] / outcome.backlog[team] for team in outcome.backlog]
    lost = sum(work.lost_s for work in outcome.works)
    return {
        "policy": outcome.name,
        "utilisation": f"{outcome.used / total / max(outcome.until, last):.1%}",
        "mean wait": f"{waits.mean() / 3600:.2f} h",
        "p95 wait": f"{np.percentile(waits, 95) / 3600:.2f} h",
        "longest wait": f"{waits.max() / 86400:.1f} days",
        "urgent jobs' mean wait": f"{np.mean(urgent) / 3600:.2f} h",
        "slowdown": f"{np.mean([_slowdown(work) for work in done]):.1f}",
        "fairness": f"{sum(shares) ** 2 / len(shares) / sum(each**2 for each in shares):.3f}" if shares else "",
        "preemptions": str(sum(work.preemptions for work in outcome.works)),
        "lost work": f"{lost / outcome.used:.2%}",
        "failed": str(len(outcome.works) - len(done)),
        "waiting at most": str(max(outcome.waiting)),
    }


def _slowdown(work: Work) -> float:
    """Bounded slowdown: the time in the system over the time alone, of jobs shorter than SHORTEST_S over that."""
    stay = (work.end or 0.0) - work.at
    return max(1.0, stay / max(work.runs_s, SHORTEST_S))


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """How long jobs wait, as a distribution."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        waits = np.sort([(work.first_start or 0.0) - work.at for work in outcome.works if not work.failed])
        share = np.arange(1, len(waits) + 1) / len(outcome.works)
        axes.step(np.maximum(waits, 1.0), share, where="post", label=outcome.name)
    ticks = {1: "none", 60: "1 min", 3600: "1 h", 86400: "1 day", 7 * 86400: "1 week"}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlabel("wait before the first start")
    axes.set_ylabel("part of the jobs")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description="The queue's policy beside others, on one trace.")
    parser.add_argument("--large", action="store_true", help="1,300 nodes instead of 16")
    parser.add_argument("--jobs", type=int, help="how many (default: 2,000; 4,000 with --large)")
    parser.add_argument("--policies", nargs="+", default=["fifo", "easy", "ray", "queue"])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the waits")
    options = parser.parse_args()
    count = 1300 if options.large else 16
    nodes = [Node(f"n{index}", {"GPU": float(GPUS)}) for index in range(count)]
    works = trace(options.jobs or (4000 if options.large else 2000), count)
    outcomes: list[Outcome] = []
    for name in options.policies:
        outcomes.append(simulate(name, works, nodes))
        shown = row(outcomes[-1], count * GPUS)
        if len(outcomes) == 1:
            print(f"| {' | '.join(shown)} |\n|{'---|' * len(shown)}")
        print(f"| {' | '.join(shown.values())} |", flush=True)
    if options.plot:
        plot(outcomes, options.plot)


if __name__ == "__main__":
    main()
