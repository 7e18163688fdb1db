"""Admission: one gang at a time, by priority and then time, with a reason for everyone."""

import re

import pytest
from hypothesis import given, settings, strategies as st

from cluster.admission import Decision, Waiting, could_hold, decide

SMALL = [[{"CPU": 1.0}]]
HUGE = [[{"CPU": 64.0}]]
NODES = [{"CPU": 2.0}]
NOW = 1000.0


def waiting(job: int, priority: int = 0, gangs=SMALL, held_until: float = 0.0) -> Waiting:
    return Waiting(job, priority, gangs, held_until)


def test_the_highest_priority_goes_first_then_the_oldest_and_everyone_hears_why():
    jobs = [waiting(1), waiting(3, priority=5), waiting(2, priority=5), waiting(4, priority=-1)]
    assert decide(jobs, [], NODES, NOW) == [
        Decision(2, True, "first in line"),
        Decision(3, False, "job 2 is starting, and one runs at a time"),
        Decision(1, False, "behind job 3 (priority 5)"),
        Decision(4, False, "behind job 1 (priority 0)"),
    ]


def test_nothing_starts_beside_a_running_gang():
    assert decide([waiting(2, priority=9), waiting(3)], [1], NODES, NOW) == [
        Decision(2, False, "job 1 is running, and one runs at a time"),
        Decision(3, False, "behind job 2 (priority 9)"),
    ]


def test_a_job_that_an_empty_cluster_could_not_hold_is_passed_over():
    gangs = [[{"GPU": 1.0}] * 2, [{"CPU": 4.0}] * 2]
    assert decide([waiting(1, priority=9, gangs=gangs), waiting(2)], [], [{"CPU": 3.0}, {"CPU": 1.5}], NOW) == [
        Decision(1, False, "asks for 2 x (1 GPU) or 2 x (4 CPU); the nodes have 3 CPU, 0 GPU; 1.5 CPU, 0 GPU"),
        Decision(2, True, "first in line"),
    ]


def test_a_cluster_without_nodes_admits_nobody():
    assert decide([waiting(1)], [], [], NOW) == [Decision(1, False, "asks for 1 x (1 CPU); the nodes have nothing")]


def test_a_job_that_ended_as_soon_as_it_began_is_held_back_and_holds_nobody_up():
    queue = [waiting(1, priority=9, held_until=NOW + 1), waiting(2)]
    held, admitted = decide(queue, [], NODES, NOW)
    assert (held.job, held.admitted) == (1, False)
    assert re.fullmatch(r"held until \d\d:\d\d:\d\d: its last attempt ended as soon as it had begun", held.reason)
    assert admitted == Decision(2, True, "first in line")
    assert decide(queue, [], NODES, NOW + 1)[0] == Decision(1, True, "first in line")


def test_a_job_is_not_held_for_longer_than_a_hold_takes_where_the_clock_was_set_back():
    job = Waiting(1, 0, [[{"CPU": 1.0}]], held_until=1_000_030.0)
    assert [decide([job], [], [{"CPU": 4.0}], now)[0].admitted for now in (1_000_000.0, 996_400.0)] == [False, True]


def test_an_empty_queue_decides_nothing():
    assert decide([], [], NODES, NOW) == []


@pytest.mark.parametrize(
    ("gang", "nodes", "expected"),
    [
        ([{"CPU": 1.0}] * 2, [{"CPU": 2.0}], True),
        ([{"CPU": 1.0}] * 3, [{"CPU": 2.0}], False),
        ([{"CPU": 2.0}], [{"CPU": 1.0}, {"CPU": 1.0}], False),
        ([{"CPU": 0.1}] * 10, [{"CPU": 1.0}], True),
        ([{"CPU": 1.0}, {"CPU": 2.0}], [{"CPU": 1.0}, {"CPU": 2.0}], True),
        ([{"CPU": 1.0}, {"CPU": 3.0}], [{"CPU": 1.0}, {"CPU": 2.0}], False),
        ([{"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 2.0}, {"CPU": 2.0}], True),
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], True),
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], False),
        ([{}], [{}], True),
        ([{"CPU": 0.0, "none": 0.0}], [{"CPU": 1.0}], True),
    ],
)
def test_bundles_are_placed_whole_on_nodes(gang, nodes, expected):
    assert could_hold(gang, nodes) is expected


bundles = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 3).map(float), max_size=2)


@settings(deadline=None)  # the machines are shared
@given(st.lists(bundles, min_size=1, max_size=4), st.lists(bundles, max_size=3))
def test_no_gang_that_has_a_placement_is_refused(gang, nodes):
    def placed(rest, room) -> bool:
        if not rest:
            return True
        for node in room:
            if all(node.get(name, 0.0) >= amount for name, amount in rest[0].items()):
                taken = {name: node.get(name, 0.0) - amount for name, amount in rest[0].items()}
                if placed(rest[1:], [{**node, **taken} if other is node else other for other in room]):
                    return True
        return False

    if placed(gang, nodes):
        assert could_hold(gang, nodes)
    elif all(bundle == gang[0] for bundle in gang):
        assert not could_hold(gang, nodes)


jobs = st.lists(
    st.builds(
        waiting,
        st.integers(1, 10**6),
        st.integers(-3, 3),
        st.sampled_from([SMALL, HUGE, [*HUGE, *SMALL]]),
        st.sampled_from([0.0, NOW, NOW + 1]),
    ),
    unique_by=lambda job: job.id,
    max_size=8,
)


@settings(deadline=None)
@given(jobs, st.lists(st.integers(10**7, 10**7 + 3), max_size=2), st.randoms())
def test_invariants(queue, running, random):
    decisions = decide(queue, running, NODES, NOW)
    assert sorted(decision.job for decision in decisions) == sorted(job.id for job in queue)
    assert all(decision.reason for decision in decisions)
    admitted = [decision.job for decision in decisions if decision.admitted]
    able = [job for job in queue if job.gangs != HUGE and job.held_until <= NOW]
    assert len(admitted) == (0 if running or not able else 1)
    if admitted:
        assert admitted[0] == min(able, key=lambda job: (-job.priority, job.id)).id
    shuffled = list(queue)
    random.shuffle(shuffled)
    assert decide(shuffled, running, NODES, NOW) == decisions
