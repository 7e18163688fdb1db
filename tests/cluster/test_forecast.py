"""When waiting jobs are expected to start."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cluster.admission import Policy, Running, Waiting, decide
from cluster.forecast import MAX_STEPS, Forecast
from cluster.placement import Cluster, Node
from cluster.resources import Bundle, Shape

NOW = 1_000_000.0
FREE = Bundle(resources={})


def cpus(amount: float, count: int = 1) -> Shape:
    return Shape.of([[Bundle(resources={"CPU": amount})] * count], FREE)


def expected(nodes: list[Node], running: list[Running], waiting: list[Waiting], **policy) -> list[float | None]:
    """Seconds from now to the start of each job, in order of submission; 0 for one that starts now."""
    decided = decide(nodes, running, waiting, {}, Policy(**policy), NOW)
    now = {start.job for start in decided.starts}
    at = [0.0 if each.id in now else decided.waits[each.id].start_at for each in waiting]
    return [None if each is None else each - NOW * (each > 0) for each in at]


A = Node("a", {"CPU": 4.0})


def test_equal_jobs_start_one_after_the_other():
    waiting = [Waiting(each, cpus(2), since=NOW, max_runtime_s=100) for each in range(1, 8)]
    assert expected([A], [], waiting) == [0, 0, 100, 100, 200, 200, 300]


def test_those_ahead_are_in_the_way_and_a_short_one_goes_between():
    running = [Running(9, {"a": {"CPU": 3.0}}, NOW - 10, NOW + 50)]
    waiting = [
        Waiting(1, cpus(4), since=NOW, max_runtime_s=200),
        Waiting(2, cpus(4), since=NOW, max_runtime_s=10),
        Waiting(3, cpus(2), since=NOW, max_runtime_s=1000),
        Waiting(4, cpus(1), since=NOW, max_runtime_s=50),
        Waiting(5, cpus(1), since=NOW, max_runtime_s=51),
    ]
    assert expected([A], running, waiting) == [50, 250, 260, 0, 260]


def test_one_that_backs_off_is_in_the_way_too():
    waiting = [
        Waiting(1, cpus(4), since=NOW, priority=9, held_until=NOW + 100, max_runtime_s=50),
        Waiting(2, cpus(2), since=NOW),
        Waiting(3, cpus(2), since=NOW, max_runtime_s=101),
        Waiting(4, cpus(2), since=NOW, max_runtime_s=100),
    ]
    assert expected([A], [], waiting) == [100, 150, 150, 0]
    undeclared = [replace(waiting[0], max_runtime_s=None), *waiting[1:]]
    assert expected([A], [], undeclared) == [100, None, None, 0]


def test_it_is_not_known_behind_what_declares_nothing():
    forever = [Running(9, {"a": {"CPU": 3.0}}, NOW - 10)]
    waiting = [Waiting(1, cpus(4), since=NOW, max_runtime_s=200), Waiting(2, cpus(1), since=NOW, max_runtime_s=10)]
    assert expected([A], forever, waiting) == [None, None]
    soon = [Running(9, {"a": {"CPU": 3.0}}, NOW - 10, NOW + 60)]
    waiting = [Waiting(1, cpus(3), since=NOW), Waiting(2, cpus(1, 2), since=NOW, max_runtime_s=10)]
    assert expected([A], soon, waiting) == [60, None]
    others = [Node("a", {"CPU": 4.0}, {"CPU": 1.0})]
    assert expected(others, soon, [Waiting(1, cpus(4), since=NOW)]) == [None]


def test_a_shorter_one_of_the_same_may_go_before():
    """As it does in the round in which there is room."""
    running = [
        Running(8, {"a": {"CPU": 2.0}}, NOW - 10, NOW + 100),
        Running(9, {"a": {"CPU": 2.0}}, NOW - 10, NOW + 1000),
    ]
    waiting = [
        Waiting(1, cpus(4), since=NOW, max_runtime_s=50),
        Waiting(2, cpus(2), since=NOW, max_runtime_s=2000),
        Waiting(3, cpus(2), since=NOW, max_runtime_s=60),
    ]
    assert expected([A], running, waiting) == [1000, 1050, 100]


def test_who_waits_for_others_keeps_those_behind_out():
    nodes = [Node("a", {"CPU": 4.0}, {"CPU": 1.0})]
    running = [Running(9, {"a": {"CPU": 3.0}}, NOW - 10, NOW + 60)]
    waiting = [Waiting(1, cpus(4), since=NOW), Waiting(2, cpus(3), since=NOW, max_runtime_s=10)]
    assert expected(nodes, running, waiting) == [None, None]


def test_the_first_so_many_are_told():
    waiting = [Waiting(each, cpus(4), since=NOW, max_runtime_s=100) for each in range(1, 6)]
    assert expected([A], [], waiting, forecasts=2) == [0, 100, 200, None, None]


lengths = st.integers(1, 6).map(lambda each: each * 10.0)
jobs = st.lists(st.tuples(st.integers(1, 4), st.none() | lengths), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 2), st.none() | lengths), max_size=2), jobs)
def test_each_takes_the_first_time_at_which_it_fits(running, waiting):
    """On one node this is counting: beside those before it, each starts as soon as it fits until its end."""
    cluster = Cluster([A], {cpus(each) for each in range(1, 5)})
    ends = [
        (math.inf if ends_in is None else NOW + ends_in, cluster.amounts({"a": {"CPU": cpu}}))
        for cpu, ends_in in running
    ]
    free = cluster.usable - sum((used for _, used in ends), np.zeros_like(cluster.usable))
    forecast = Forecast(cluster, free, NOW, sorted(ends, key=lambda each: each[0]))
    held = [(cpu, NOW, end) for (cpu, _), (end, _) in zip(running, ends, strict=True)]
    last, unknown = 4, False
    for cpu, runs_s in waiting:
        length = math.inf if runs_s is None else runs_s
        [demand] = cluster.demands(cpus(cpu))
        times = sorted({NOW, *(end for _, _, end in held if end < math.inf)})
        fitting = [
            at
            for at in times
            if all(_in_use(held, each) + cpu <= 4 for each in (at, *times) if at <= each < at + length)
        ]
        at = fitting[0] if fitting and (cpu <= last or not unknown) else None
        assert forecast.start(cpus(cpu), demand, length) == at
        if at is not None:
            held.append((cpu, at, at + length))
            last -= cpu * (length == math.inf)
        elif cpu <= last:
            last, unknown = last - cpu, True


def _in_use(held: list[tuple[int, float, float]], at: float) -> int:
    return sum(cpu for cpu, start, end in held if start <= at < end)


def test_many_ends_are_taken_together_and_never_too_early():
    count = 5 * MAX_STEPS
    cluster = Cluster([Node("a", {"CPU": float(count)})], {cpus(count / 2)})
    one = cluster.amounts({"a": {"CPU": 1.0}})
    forecast = Forecast(cluster, one * 0, NOW, [(NOW + each, one) for each in range(1, count + 1)])
    [demand] = cluster.demands(cpus(count / 2))
    first, second = (forecast.start(cpus(count / 2), demand, 10.0) for _ in range(2))
    assert first == pytest.approx(NOW + count / 2, abs=count / MAX_STEPS)
    assert second == pytest.approx(NOW + count / 2 + 10, abs=count / MAX_STEPS)
    assert first is not None
    assert first >= NOW + count / 2
