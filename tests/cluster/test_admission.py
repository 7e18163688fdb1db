"""Admission: one gang at a time, by priority and then time, with a reason for everyone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import Decision, Waiting, decide, fits

SMALL = [[{"CPU": 1.0}]]
HUGE = [[{"CPU": 64.0}]]
NODES = [{"CPU": 2.0}]


def waiting(job: int, priority: int = 0, at: float | None = None, gangs=SMALL) -> Waiting:
    return Waiting(job, priority, float(job) if at is None else at, gangs)


def test_the_highest_priority_goes_first_then_the_oldest_and_everyone_hears_why():
    jobs = [waiting(1), waiting(2, priority=5), waiting(3, priority=5, at=0.5), waiting(4, priority=-1)]
    assert decide(jobs, [], NODES) == [
        Decision(3, True, "first in line"),
        Decision(2, False, "job 3 is starting, and one runs at a time"),
        Decision(1, False, "behind job 2 (priority 5)"),
        Decision(4, False, "behind job 1 (priority 0)"),
    ]


def test_nothing_starts_beside_a_running_gang():
    assert decide([waiting(2, priority=9), waiting(3)], [1], NODES) == [
        Decision(2, False, "job 1 is running, and one runs at a time"),
        Decision(3, False, "behind job 2 (priority 9)"),
    ]


def test_a_job_that_an_empty_cluster_could_not_hold_is_passed_over():
    gangs = [[{"GPU": 1.0}] * 2, [{"CPU": 4.0}] * 2]
    assert decide([waiting(1, priority=9, gangs=gangs), waiting(2)], [], [{"CPU": 3.0}, {"CPU": 1.5}]) == [
        Decision(1, False, "asks for 2 x (1 GPU) or 2 x (4 CPU); the nodes have 3 CPU, 0 GPU; 1.5 CPU, 0 GPU"),
        Decision(2, True, "first in line"),
    ]


def test_a_cluster_without_nodes_admits_nobody():
    assert decide([waiting(1)], [], []) == [Decision(1, False, "asks for 1 x (1 CPU); the nodes have nothing")]


def test_an_empty_queue_decides_nothing():
    assert decide([], [], NODES) == []


@pytest.mark.parametrize(
    ("gang", "nodes", "expected"),
    [
        ([{"CPU": 1.0}] * 2, [{"CPU": 2.0}], True),
        ([{"CPU": 1.0}] * 3, [{"CPU": 2.0}], False),
        ([{"CPU": 2.0}], [{"CPU": 1.0}, {"CPU": 1.0}], False),
        ([{"CPU": 0.1}] * 10, [{"CPU": 1.0}], True),
        ([{"CPU": 1.0}, {"CPU": 2.0}], [{"CPU": 1.0}, {"CPU": 2.0}], True),
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], True),
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], False),
        ([{}], [{}], True),
        ([{"CPU": 0.0, "none": 0.0}], [{"CPU": 1.0}], True),
    ],
)
def test_bundles_are_placed_whole_on_nodes(gang, nodes, expected):
    assert fits(gang, nodes) is expected


jobs = st.lists(
    st.builds(
        waiting,
        st.integers(1, 10**6),
        st.integers(-3, 3),
        st.floats(0, 10),
        st.sampled_from([SMALL, HUGE, [*HUGE, *SMALL]]),
    ),
    unique_by=lambda job: job.id,
    max_size=8,
)


@given(jobs, st.lists(st.integers(10**7, 10**7 + 3), max_size=2), st.randoms())
def test_invariants(queue, running, random):
    decisions = decide(queue, running, NODES)
    assert sorted(decision.job for decision in decisions) == sorted(job.id for job in queue)
    assert all(decision.reason for decision in decisions)
    admitted = [decision.job for decision in decisions if decision.admitted]
    able = [job for job in queue if job.gangs != HUGE]
    assert len(admitted) == (0 if running or not able else 1)
    if admitted:
        assert admitted[0] == min(able, key=lambda job: (-job.priority, job.submitted_at, job.id)).id
    shuffled = list(queue)
    random.shuffle(shuffled)
    assert decide(shuffled, running, NODES) == decisions
