"""Admission: gangs on nodes, whole or not at all; a fair order; nobody is delayed by those who go first."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from cluster.admission import MAX_HOLD_S, Policy, Preempt, Round, Running, Terms, Waiting, decide
from cluster.placement import Node
from cluster.reasons import EXPLANATIONS, Reason
from cluster.resources import Bundle, Shape

NOW = 1_000_000.0
FREE = Bundle(resources={})
OLD = NOW - 10_000


def gang(*bundles: Mapping[str, float], driver: Bundle = FREE, **labels: str) -> Shape:
    return Shape.of([[Bundle(resources=dict(each), labels=labels) for each in bundles]], driver)


def cpus(amount: float, count: int = 1) -> Shape:
    return gang(*[{"CPU": amount}] * count)


def node(name: str, labels: dict[str, str] | None = None, held: dict[str, float] | None = None, **total: float) -> Node:
    return Node(name, total, held or {}, labels or {}, name)


ONE_CPU = cpus(1)


def job(number: int, shape: Shape = ONE_CPU, **fields) -> Waiting:
    return Waiting(number, shape, since=NOW, **fields)


def runs(number: int, where: str = "a", began_at: float = OLD, **fields) -> Running:
    amounts = {name: fields.pop(name) for name in ("CPU", "GPU") if name in fields}
    return Running(number, {where: amounts}, began_at, **fields)


def admit(nodes, waiting, running=(), terms=None, now=NOW, **policy) -> Round:
    return decide(nodes, running, waiting, terms or {}, Policy(**policy), now)


def started(decided: Round) -> list[int]:
    return [start.job for start in decided.starts]


A, B = node("a", CPU=4), node("b", CPU=4)


def test_what_fits_together_starts_together_in_order_of_priority_and_then_of_submission():
    decided = admit([A, B], [job(1), job(2, priority=5), job(3, cpus(4), priority=5), job(4, cpus(3)), job(5)])
    assert started(decided) == [2, 3, 1, 4] or started(decided) == [2, 3, 1, 5]
    assert [start.placement.gang for start in decided.starts] == [0] * len(decided.starts)


def test_a_gang_starts_whole_or_not_at_all_and_each_bundle_is_on_one_node():
    decided = admit([A, B], [job(1, cpus(3, 2)), job(2, cpus(3))])
    assert started(decided) == [1]
    assert sorted(decided.starts[0].placement.bundles) == ["a", "b"]
    assert decided.waits[2].code == Reason.RESOURCES
    assert decided.waits[2].text == "needs 3 CPU on one node; the largest free block is 1 CPU on a"
    decided = admit([A, B], [job(1, cpus(3, 3)), job(2, cpus(3, 3))])
    assert decided.waits[1] == decided.waits[2]
    assert decided.waits[1].code == Reason.IMPOSSIBLE
    assert decided.waits[1].text == "asks for 3 x (3 CPU); the nodes have 2 with 4 CPU"


def test_few_nodes_are_used_and_those_that_have_more_are_kept_for_who_needs_it():
    nodes = [node("gpu", CPU=8, GPU=8), A, B]
    assert admit(nodes, [job(1, cpus(2, 2))]).starts[0].placement.bundles == ("a", "a")
    [first, second] = admit(nodes, [job(1, cpus(3)), job(2, cpus(1))]).starts
    assert first.placement.bundles == second.placement.bundles == ("a",)  # which it fills
    assert admit(nodes, [job(1, gang({"CPU": 1, "GPU": 1}))]).starts[0].placement.bundles == ("gpu",)
    assert admit([nodes[0], A], [job(1, cpus(1, 6))]).starts[0].placement.bundles == ("gpu",) * 2 + ("a",) * 4


def test_a_gang_that_only_a_search_can_place_is_not_called_impossible():
    nodes = [node("a", CPU=11), node("b", CPU=6)]
    shape = gang(*({"CPU": amount} for amount in (3, 3, 4, 2, 5)))
    assert admit(nodes, [job(1, shape)]).starts[0].placement.bundles == ("b", "b", "a", "a", "a")
    alike = gang(*({"CPU": amount} for amount in (4, 4, 4, 3, 3)))  # 18 of 18, and no two nodes of 9 hold them
    assert admit([node("a", CPU=9), node("b", CPU=9)], [job(1, alike)]).waits[1].code == Reason.IMPOSSIBLE
    hard = gang(*({"CPU": 5 + index / 7} for index in range(14)))  # given up after some steps
    assert admit([node(str(index), CPU=16) for index in range(5)], [job(1, hard)]).waits[1].code == Reason.IMPOSSIBLE
    memory = Bundle(resources={"memory": 2.0})
    nodes = [node("a", CPU=2, memory=1), node("b", CPU=2, memory=2)]
    assert admit(nodes, [job(1, gang({"CPU": 2, "memory": 1}, driver=memory))]).starts[0].placement.driver == "b"
    ten = node("a", CPU=1)
    assert started(admit([ten], [job(1, cpus(0.1, 10))])) == [1]
    assert admit([ten], [job(1, cpus(0.1, 11))]).waits[1].code == Reason.IMPOSSIBLE
    big = gang(*({"CPU": amount} for amount in (1, 2) for _ in range(20)))
    assert admit([node("a", CPU=1.5)] * 1, [job(1, big)]).waits[1].code == Reason.IMPOSSIBLE


def test_the_driver_is_a_bundle_of_its_own_beside_its_gang():
    driver = Bundle(resources={"memory": 2.0})
    nodes = [node("a", CPU=4, memory=1), node("b", CPU=4, memory=4), node("c", CPU=1, memory=100)]
    placement = admit(nodes, [job(1, gang({"CPU": 4}, driver=driver))]).starts[0].placement
    assert (placement.driver, placement.bundles) == ("c", ("a",))
    placement = admit(nodes, [job(1, gang({"CPU": 4}, {"CPU": 4}, driver=driver))]).starts[0].placement
    assert placement.driver == "b"
    apart = [node("a", CPU=4, memory=1), node("b", CPU=4, memory=1)]
    assert admit(apart, [job(1, gang({"CPU": 4}, driver=driver))]).waits[1].text == (
        "asks for 1 x (4 CPU), and 2 memory for its driver; the nodes have 2 with 4 CPU, 1 memory"
    )
    many = [job(number, gang(driver=driver)) for number in range(1, 60)]
    spread = Counter(start.placement.driver for start in admit(nodes, many).starts)
    assert spread == {"b": 2, "c": 50}  # as many as there is memory for


def test_labels_and_custom_resources_choose_nodes():
    nodes = [node("a", {"gpu": "T4"}, CPU=4), node("b", {"gpu": "H100"}, CPU=4, licence=1), node("c", CPU=4)]
    for selector, allowed in (("H100", "b"), ("!H100", "ac"), ("in(T4,H100)", "ab"), ("!in(T4,H100)", "c")):
        decided = admit(nodes, [job(1, gang(*[{"CPU": 4}] * len(allowed), gpu=selector))])
        assert "".join(sorted(decided.starts[0].placement.bundles)) == allowed
    assert admit(nodes, [job(1, gang({"licence": 1}))]).starts[0].placement.bundles == ("b",)
    wait = admit(nodes, [job(1, gang({"CPU": 1}, gpu="A100"))]).waits[1]
    assert wait.code == Reason.IMPOSSIBLE
    assert wait.text == "asks for 1 x (1 CPU where gpu is A100); the nodes have 3 with 4 CPU; gpu is H100, T4 there"
    assert admit([A], [job(1, gang({"CPU": 1}, gpu="A100"))]).waits[1].text.endswith("; gpu is no value there")


def test_a_node_whose_label_a_job_chooses_by_is_kept_for_it():
    nodes = [node("a", {"gpu": "H100"}, CPU=4), node("b", {"gpu": "T4"}, CPU=4), node("c", CPU=4)]
    chooses = job(9, gang({"CPU": 4}, gpu="in(H100,T4)"))
    assert [start.placement.bundles for start in admit(nodes, [job(1, cpus(4)), chooses]).starts] == [("c",), ("a",)]
    assert admit(nodes, [job(1, cpus(4))]).starts[0].placement.bundles == ("a",)


def test_of_the_alternatives_the_first_counts_that_the_nodes_could_hold():
    both = Shape.of([[Bundle(resources={"GPU": 1})], [Bundle(resources={"CPU": 1})]], FREE)
    assert admit([A], [job(1, both)]).starts[0].placement.gang == 1
    gpu = node("g", CPU=4, GPU=1)
    assert admit([A, gpu], [job(1, both)]).starts[0].placement.gang == 0
    assert admit([A, gpu], [job(1, both)], terms={"default": Terms(maximum=0.5)}).starts[0].placement.gang == 1
    none = admit([A, gpu], [job(1, both)], terms={"default": Terms(maximum=0.1)}).waits[1]
    assert none.text == "asks for 12% of the cluster; the maximum of queue default is 10%"
    taken = admit([A, gpu], [job(1, both)], [runs(9, "g", GPU=1)])
    assert taken.waits[1].code == Reason.RESOURCES  # the program takes GPUs where the cluster has them


def test_what_others_hold_is_not_there():
    busy = node("a", CPU=4, held={"CPU": 3})
    assert started(admit([busy], [job(1), job(2)])) == [1]
    wait = admit([busy], [job(1, cpus(2))]).waits[1]
    assert wait.code == Reason.OTHERS
    assert (
        wait.text == "needs 2 CPU on one node; the largest free block is 1 CPU on a; the rest is held outside the queue"
    )
    over = node("a", CPU=4, held={"CPU": 9})
    decided = admit([busy], [job(1, cpus(4), priority=1), job(2)])  # what there is is kept for the first
    assert (started(decided), decided.waits[2].code) == ([], Reason.RESERVED)
    assert admit([over], [job(1)]).waits[1].text.startswith("needs 1 CPU on one node; the largest free block is none")


def test_a_job_is_measured_by_what_it_holds_where_that_is_more():
    assert started(admit([A], [job(1, cpus(2))], [runs(9, CPU=2)])) == [1]
    assert started(admit([A], [job(1, cpus(2))], [runs(9, CPU=3)])) == []
    assert started(admit([A], [job(1, cpus(4))], [runs(9, "gone", CPU=3)])) == [1]  # on a node that is gone


def test_waiting_and_preemptions_count_as_priority():
    old = Waiting(5, cpus(4), since=NOW - 3 * 3600)
    assert started(admit([A], [old, job(1, cpus(4), priority=2)])) == [5]
    assert started(admit([A], [old, job(1, cpus(4), priority=4)])) == [1]
    assert started(admit([A], [old, job(1, cpus(4), priority=2)], hours_per_point=10.0)) == [1]
    assert started(admit([A], [job(1, cpus(4)), job(2, cpus(4), preemptions=1)])) == [2]
    made_room, winner = job(1, cpus(4), preemptions=1, priority=1), job(2, cpus(4), priority=2, owed=True)
    assert started(admit([A], [made_room, winner, job(3, cpus(4), priority=9)])) == [2]


# ------------------------------------------------------------------ why a job waits


def test_every_reason_has_an_explanation_and_the_precedence_is_their_order():
    assert set(EXPLANATIONS) == set(Reason)
    stopped = (Reason.HELD, "held")
    terms = {"default": Terms(max_running=1, max_running_per_user=1, maximum=0.8)}
    running = [runs(9, CPU=3, user="me")]
    everything = {"stopped": stopped, "after": (7,), "held_until": NOW + 5, "user": "me"}
    found: list[Reason] = []
    shape, policy = cpus(99), {"draining": True, "max_attempts": 1}
    relax = [
        lambda: policy.update(draining=False),
        lambda: everything.pop("stopped"),
        lambda: everything.pop("after"),
        lambda: None,
        lambda: everything.pop("held_until"),
        lambda: terms.update(default=Terms(max_running_per_user=1, maximum=0.8)),
        lambda: terms.update(default=Terms(maximum=0.8)),
        lambda: terms.clear(),
        lambda: policy.update(max_attempts=2),
    ]
    for change in relax:
        found.append(admit([A], [job(1, shape, **everything)], running, terms, **policy).waits[1].code)
        shape = cpus(2) if found[-1] == Reason.IMPOSSIBLE else shape
        change()
    found.append(admit([A], [job(1, shape, **everything)], running, terms, **policy).waits[1].code)
    assert found == [
        Reason.DRAINING, Reason.HELD, Reason.DEPENDENCY, Reason.IMPOSSIBLE, Reason.BACK_OFF, Reason.QUEUE_RUNNING,
        Reason.USER_RUNNING, Reason.QUEUE_MAXIMUM, Reason.ATTEMPTS, Reason.RESOURCES,
    ]  # fmt: skip
    assert found == sorted(found, key=list(Reason).index)


def test_reasons_say_what_is_missing():
    nodes = [node("gpu-1", CPU=8, GPU=8), node("gpu-3", CPU=8, GPU=8)]
    running = [runs(8, "gpu-1", CPU=6, GPU=6, rank=9), runs(9, "gpu-3", CPU=4, GPU=4, rank=9)]
    waiting = [
        job(1, gang({"GPU": 8}), priority=2),
        job(2, gang({"GPU": 6}), priority=1),
        job(3, gang(*[{"GPU": 1}] * 9)),
    ]
    waits = admit(nodes, waiting, running).waits
    assert waits[1].text == "needs 8 GPU on one node; the largest free block is 4 GPU on gpu-3"
    assert waits[2].text.endswith("on gpu-3; 1 job ahead")
    assert waits[3].text == "needs 9 x (1 GPU); there is room for 6; 2 jobs ahead"
    two = gang({"CPU": 4}, {"GPU": 4}, driver=Bundle(resources={"CPU": 1}))
    assert admit(nodes[:1], [job(1, two)], [runs(9, "gpu-1", CPU=4, GPU=4)]).waits[1].text == (
        "needs 1 x (4 CPU) + 1 x (4 GPU) at once; there is not room for all of it"
    )
    assert admit([A], [job(1, gang(driver=Bundle(resources={"CPU": 2})))], [runs(9, CPU=3)]).waits[1].text == (
        "needs 2 CPU on one node; the largest free block is 1 CPU on a"
    )


def test_a_back_off_ends_and_a_clock_that_was_set_back_does_not_lengthen_it():
    waits = admit([A], [job(1, held_until=NOW + 1), job(2)])
    assert started(waits) == [2]
    assert re.fullmatch(r"its last attempt failed; it is tried again from \d\d:\d\d:\d\d", waits.waits[1].text)
    assert waits.waits[1].start_at == NOW + 1
    assert started(admit([A], [job(1, held_until=NOW)])) == [1]
    assert started(admit([A], [job(1, held_until=NOW + MAX_HOLD_S + 1)])) == [1]


def test_a_job_that_backs_off_keeps_its_place():
    """Or those below it take its nodes for as long as they like, because something else ended its attempt."""
    first = job(1, cpus(4), priority=9, held_until=NOW + 60)
    below = [job(2), job(3, max_runtime_s=60), job(4, max_runtime_s=61)]
    decided = admit([A], [first, *below])
    assert started(decided) == [3]
    assert decided.waits[2].text.startswith("there is room, but job 1 ahead of it could be delayed")
    assert [decided.waits[number].code for number in (1, 2, 4)] == [Reason.BACK_OFF] + [Reason.RESERVED] * 2
    assert set(started(admit([A, B], [first, *below]))) == {2, 3, 4}  # the other node
    running = [runs(9, CPU=3, ends_at=NOW + 30, rank=9)]
    assert started(admit([A], [first, *below], running)) == [3]
    assert started(admit([A], [job(1, cpus(4), held_until=NOW + 60), job(2, priority=9)])) == [2]  # is ahead of it


def test_a_job_that_backs_off_keeps_its_place_under_a_limit():
    """Or one below it starts elsewhere, and it has to wait for that one."""
    nodes, off = [A, B], {"priority": 9, "held_until": NOW + 30, "queue": "x", "user": "me"}
    for terms in (Terms(max_running=1), Terms(max_running_per_user=1), Terms(maximum=0.5)):
        below = [job(2, cpus(4), queue="x", user="me"), job(3, cpus(4), queue="x", user="me", max_runtime_s=30)]
        decided = admit(nodes, [job(1, cpus(4), **off), *below], terms={"x": terms})
        assert started(decided) == [3]  # which has ended then
        assert decided.waits[2].code in (Reason.QUEUE_RUNNING, Reason.USER_RUNNING, Reason.QUEUE_MAXIMUM)
    ends = [runs(9, CPU=1, queue="x", ends_at=NOW + 20)]
    decided = admit(nodes, [job(1, **off), job(2, queue="x")], ends, {"x": Terms(max_running=2)})
    assert started(decided) == [2]  # one ends before
    assert started(admit(nodes, [job(1, **off), job(2, queue="x")], max_attempts=1)) == []


def test_a_job_that_backs_off_and_could_not_start_then_keeps_nobody_from_starting():
    waiting = [job(1, cpus(3), queue="x", priority=9, held_until=NOW + 600), job(2, cpus(3))]
    decided = admit([A], waiting, [runs(9, CPU=1, queue="x", rank=20)], {"x": Terms(max_running=1)})
    assert started(decided) == [2]


def test_all_that_a_lost_cluster_ended_keep_their_places_and_leave_theirs_to_large_ones():
    lost = [job(number, priority=9, held_until=NOW + 30 + number) for number in range(1, 41)]
    nodes = [node(str(number), CPU=4) for number in range(10)]
    assert started(admit(nodes, [*lost, *(job(number) for number in range(50, 60))])) == []
    off = [job(number, gang({"GPU": 1}), priority=9, held_until=NOW + 30) for number in range(1, 21)]
    large, small = job(50, cpus(4), priority=5), job(51)
    decided = admit([A, node("g", GPU=20)], [*off, large, small], [runs(99, CPU=1, ends_at=NOW + 60)])
    assert started(decided) == []
    assert (decided.waits[50].code, decided.waits[51].code) == (Reason.RESOURCES, Reason.RESERVED)


def test_those_behind_do_not_take_the_place_under_a_limit_of_a_job_that_waits_for_room():
    running = [runs(1, "a", CPU=4, ends_at=NOW + 600), runs(2, "b", CPU=2, queue="x")]
    first = job(3, cpus(4), queue="x", priority=9)
    behind = [job(4, queue="x"), job(5, queue="x", max_runtime_s=600), job(6, queue="y")]
    decided = admit([A, B], [first, *behind], running, {"x": Terms(max_running=2)})
    assert started(decided) == [5, 6] or started(decided) == [6, 5]
    assert decided.waits[4].text == "queue x will run 2 jobs once those ahead start; allowed at once: 2"
    assert set(started(admit([A, B], [first, *behind], running, {"x": Terms(max_running=3)}))) >= {4, 6}


def test_small_ones_do_not_keep_a_large_one_from_what_its_queue_may_hold():
    running = [runs(number, CPU=1, queue="x", rank=9, ends_at=NOW + 100 * number) for number in (1, 2)]
    waiting = [job(3, cpus(4), queue="x", priority=5), job(4, queue="x"), job(5, queue="x", max_runtime_s=200)]
    decided = admit([A, B], [*waiting, job(6, cpus(4), queue="y")], running, {"x": Terms(maximum=0.5)})
    assert started(decided) == [6, 5] or started(decided) == [5, 6]  # other queues may have what it waits to be allowed
    assert [decided.waits[number].code for number in (3, 4)] == [Reason.QUEUE_MAXIMUM] * 2
    undeclared = [replace(each, ends_at=None) for each in running]
    assert started(admit([A, B], waiting, undeclared, {"x": Terms(maximum=0.5)})) == [4, 5]


@pytest.mark.parametrize("terms", [Terms(), Terms(max_running=1), Terms(max_running_per_user=1)])
def test_nobody_waits_for_one_of_which_it_is_not_known_when_it_starts(terms: Terms):
    """A CPU job for a GPU job, say, for as long as programs outside the queue hold the GPU."""
    held = node("g", held={"GPU": 1}, CPU=8, GPU=1)
    waiting = [job(1, gang({"GPU": 1}), priority=9, queue="x"), job(2, queue="x", max_runtime_s=10)]
    assert started(admit([held], waiting, terms={"x": terms}, max_attempts=1)) == [2]
    assert started(admit([node("g", CPU=8, GPU=1)], waiting, [runs(9, "g", GPU=1, queue="y")], {"x": terms})) == [2]


def test_what_its_queue_may_never_hold_is_impossible_and_keeps_nobody_from_coming_first():
    terms = {"x": Terms(maximum=0.5, usage=0.9)}
    large = Waiting(1, cpus(3), queue="x", since=NOW - 9 * 86400)
    late = Waiting(2, cpus(2), queue="x", since=NOW - 8 * 86400)
    decided = admit([A], [large, late, job(3, cpus(3), queue="y", priority=9)], terms=terms)
    assert started(decided) == [2]
    assert decided.waits[1].code == Reason.IMPOSSIBLE
    assert decided.waits[1].text == "asks for 75% of the cluster; the maximum of queue x is 50%"
    of_one = [Waiting(number, cpus(2), user=user, since=NOW - 8 * 86400) for number, user in ((1, "a"), (2, "b"))]
    once = {"default": Terms(max_running_per_user=1, usage=0.9)}
    assert started(admit([A], [*of_one, job(3, cpus(2), queue="y")], [runs(9, CPU=2, user="a")], once)) == [2]


@pytest.mark.parametrize("count", [2000, 20_000])
def test_thousands_of_nodes_with_terabytes_are_counted_right(count: int):
    """Their memory in ten-thousandths of a byte is more than 64 bits hold."""
    nodes = [node(str(index), CPU=4, memory=2 * 2**40) for index in range(count)]
    half = gang(*[{"memory": 2**41}] * (count // 2))
    decided = admit(nodes, [job(1), job(2, half), job(3, gang(*[{"memory": 2**41}] * (count + 1)))])
    assert started(decided) == [1, 2]
    assert decided.starts[1].share == pytest.approx(0.5)
    assert decided.waits[3].code == Reason.IMPOSSIBLE
    capped = admit(nodes, [job(1, half), job(2)], terms={"default": Terms(maximum=0.4)})
    assert capped.waits[1].text == "asks for 50% of the cluster; the maximum of queue default is 40%"
    huge = [node("x", CPU=1, disk=1e17), node("y", CPU=1, disk=1e17)]
    assert started(admit(huge, [job(1, gang({"disk": 9e13}))])) == [1]


def test_nothing_to_decide_and_nothing_to_decide_with():
    assert admit([A], []) == Round()
    assert admit([], [job(1)]).waits[1].text == "asks for 1 x (1 CPU); the nodes have nothing"


def test_many_kinds_of_nodes_are_summarised():
    nodes = [node(f"n{index}", CPU=index % 6 + 1) for index in range(12)]
    assert admit(nodes, [job(1, cpus(64))]).waits[1].text.endswith("2 with 4 CPU; …")


# ------------------------------------------------------------------ between queues


def test_the_queue_that_has_used_the_least_for_its_weight_comes_first():
    waiting = [job(number, cpus(4), queue=queue) for number, queue in enumerate("xxyyzz", 1)]
    terms = {"x": Terms(usage=0.5), "y": Terms(usage=0.4), "z": Terms(usage=0.6, weight=2.0)}
    assert started(admit([A], waiting, terms=terms)) == [5]
    assert started(admit([A, B], waiting, terms=terms)) == [5, 3]  # z holds half of the cluster by then
    assert started(admit([A], waiting, terms={**terms, "x": Terms(usage=0.5, guaranteed=0.1)})) == [1]


def test_of_each_queue_the_job_that_waited_too_long_comes_first():
    """Or a large job of a team that has used much would wait as long as other teams have new ones."""
    late = [
        Waiting(number, cpus(4), queue=queue, since=NOW - 8 * 86400 + number) for number, queue in enumerate("xxyz", 1)
    ]
    terms = {"x": Terms(usage=0.9), "y": Terms(usage=0.5), "z": Terms(usage=0.5)}
    new = job(9, cpus(4), priority=99, queue="w")
    nodes = [node(name, CPU=4) for name in "abcd"]
    assert started(admit(nodes, [*late, new], terms=terms)) == [1, 3, 4, 9]
    assert started(admit(nodes[:1], [*late, new], terms=terms, overdue_s=1e9)) == [9]
    held = [Waiting(1, cpus(4), since=OLD - 1e6, stopped=(Reason.HELD, "held")), Waiting(2, cpus(9), since=OLD - 1e6)]
    assert started(admit([A], [*held, job(3, cpus(4), queue="w")])) == [3]


def test_queues_share_an_empty_cluster_by_their_weights():
    waiting = [job(number, queue="xyz"[number % 3]) for number in range(1, 61)]
    terms = {"x": Terms(), "y": Terms(weight=2.0), "z": Terms()}
    nodes = [node(name, CPU=4) for name in "abcd"]
    shares = Counter("xyz"[number % 3] for number in started(admit(nodes, waiting, terms=terms)))
    assert shares == {"x": 4, "y": 8, "z": 4}


def test_a_maximum_is_not_exceeded_and_limits_count_what_starts_in_the_same_round():
    waiting = [job(number, queue="x", user="me") for number in range(1, 9)]
    for terms, count in (
        (Terms(maximum=0.5), 2),
        (Terms(max_running=3), 3),
        (Terms(max_running_per_user=1), 1),
        (Terms(max_running=0), 0),
    ):
        assert len(started(admit([A], waiting, terms={"x": terms}))) == count
    assert len(started(admit([A], waiting, max_attempts=3))) == 3


# ------------------------------------------------------------------ reservations


def test_small_jobs_do_not_starve_a_large_one_but_use_what_it_does_not_need():
    nodes = [node("a", CPU=4), node("b", CPU=4), node("g", CPU=4, GPU=2)]
    running = [runs(8, "a", CPU=2), runs(9, "g", CPU=1, GPU=1)]
    large = job(1, gang({"GPU": 2, "CPU": 2}), priority=1)
    decided = admit(nodes, [large, job(2, gang({"GPU": 1})), *(job(3 + each) for each in range(12))], running)
    assert decided.waits[2].code == Reason.RESERVED
    assert decided.waits[2].text.startswith("there is room, but job 1 ahead of it could be delayed")
    assert started(decided) == [3, 4, 5, 6, 7, 8, 9, 10]  # 2 + 4 + 2 CPUs of g that it leaves


def test_who_ends_in_time_may_go_first():
    running = [runs(9, CPU=3, ends_at=NOW + 100, rank=9)]
    large = job(1, cpus(4), priority=1)
    decided = admit([A], [large, job(2, max_runtime_s=101), job(3, max_runtime_s=100), job(4)], running)
    assert started(decided) == [3]
    assert decided.waits[1].start_at == NOW + 100
    assert {decided.waits[number].code for number in (2, 4)} <= {Reason.RESERVED, Reason.RESOURCES}
    unknown = admit([A], [large, job(3, max_runtime_s=1)], [runs(9, CPU=3, rank=9)])
    assert started(unknown) == []
    assert unknown.waits[1].start_at is None


def test_of_several_ahead_the_one_is_named_that_could_be_delayed():
    nodes = [node("a", CPU=4), node("b", {"only": "b"}, CPU=4)]
    running = [runs(8, "a", CPU=3, ends_at=NOW + 1000, rank=9), runs(9, "b", CPU=2, ends_at=NOW + 50, rank=9)]
    waiting = [job(1, cpus(4), priority=2), job(2, gang({"CPU": 3}, only="b"), priority=1)]
    decided = admit(nodes, [*waiting, job(3, cpus(2), max_runtime_s=100)], running)
    assert [decided.waits[number].start_at for number in (1, 2)] == [NOW + 50, None]
    assert decided.waits[3].text.startswith("there is room, but job 1 ahead of it could be delayed")
    first = [job(1, gang({"CPU": 4}, only="!b"), priority=2), waiting[1]]
    decided = admit(nodes, [*first, job(3, cpus(2), max_runtime_s=100)], running)
    assert [decided.waits[number].start_at for number in (1, 2)] == [NOW + 1000, NOW + 50]
    assert decided.waits[3].text.startswith("there is room, but job 2 ahead of it could be delayed")


def test_several_that_wait_reserve_each_their_own_nodes():
    nodes = [node("a", CPU=4), node("b", CPU=4), node("c", CPU=4)]
    running = [runs(number, name, CPU=1, ends_at=NOW + 100 * number, rank=9) for number, name in enumerate("abc", 1)]
    waiting = [
        job(1, cpus(4), priority=3),
        job(2, gang({"CPU": 4}, {"CPU": 3.5}), priority=2),
        job(3, max_runtime_s=150),
    ]
    decided = admit(nodes, waiting, running)
    assert (decided.waits[1].start_at, decided.waits[2].start_at) == (NOW + 100, NOW + 300)
    assert started(decided) == [3]
    assert decided.starts[0].placement.bundles != ("a",)
    assert admit(nodes, waiting, running, forecasts=1).waits[2].start_at is None


def test_jobs_of_one_shape_reserve_once_however_long_they_run():
    nodes = [node("a", CPU=4), node("b", {"only": "b"}, CPU=4)]
    running = [runs(8, "b", CPU=2, ends_at=NOW + 1000, rank=9), runs(9, "a", CPU=4, ends_at=NOW + 100, rank=9)]
    waiting = [job(each, cpus(4), max_runtime_s=10.0 * each) for each in (1, 2, 3)]
    waiting += [job(4, gang({"CPU": 3}, only="b")), job(5, cpus(2))]
    assert started(admit(nodes, waiting, running, reservations=1)) == [5]  # nothing is kept for job 4
    decided = admit(nodes, waiting, running, reservations=2)
    assert started(decided) == []
    assert decided.waits[5].text.startswith("there is room, but job 4 ahead of it could be delayed")


def test_a_job_that_was_asked_to_leave_is_expected_to():
    decided = admit([A], [job(1, cpus(4))], [runs(9, CPU=3, leaving=True)], leave_s=60.0)
    assert decided.waits[1].start_at == NOW + 60


# ------------------------------------------------------------------ preemption


def test_a_higher_priority_takes_the_place_of_the_lowest_then_the_newest():
    running = [
        runs(1, CPU=1, rank=1, began_at=OLD), runs(2, CPU=1, rank=0, began_at=OLD, steps_to_lose=5),
        runs(3, CPU=1, rank=0, began_at=OLD + 5, steps_to_lose=9), runs(4, CPU=1, rank=0, began_at=OLD + 9),
    ]  # fmt: skip
    for wanted, victims in ((1, [3]), (2, [2, 3]), (3, [2, 3, 4]), (4, [])):
        decided = admit([A], [job(9, cpus(wanted), priority=1)], running)
        assert sorted(each.job for each in decided.preempts) == victims
        assert decided.waits[9].code == (Reason.PREEMPTING if victims else Reason.RESOURCES)
    assert admit([A], [job(9, cpus(2), priority=1)], running).waits[9].text == "jobs 2, 3 give their machines back"
    assert admit([A], [job(9, cpus(1), priority=1)], running).waits[9].text == "job 3 gives its machines back"
    same = [runs(1, CPU=2, began_at=OLD, steps_to_lose=9), runs(2, CPU=2, began_at=OLD, steps_to_lose=3)]
    assert admit([A], [job(9, cpus(2), priority=1)], same).preempts == [Preempt(2, 9)]


def test_only_as_many_leave_as_are_needed():
    running = [runs(1, "a", CPU=1), runs(2, "b", CPU=4), runs(3, "a", CPU=3, began_at=OLD - 5)]
    assert admit([A, B], [job(9, cpus(4), priority=1)], running).preempts == [Preempt(2, 9)]


def test_nobody_leaves_without_need_or_too_soon_or_too_often():
    running = [runs(1, CPU=4, began_at=NOW - 100)]
    high = job(9, cpus(4), priority=1)
    assert admit([A], [high], running).preempts == []
    assert admit([A], [high], running, min_run_s=100.0).preempts == [Preempt(1, 9)]
    assert admit([A], [high], running, min_run_s=1.0, max_preemptions=0).preempts == []
    assert admit([A, B], [high], running, min_run_s=1.0).preempts == []  # b is free
    waited = Waiting(9, cpus(4), preemptions=1, since=NOW - 1e6)  # takes nobody's place, however long it waits
    assert admit([A], [waited], running, min_run_s=1.0).preempts == []
    assert admit([A], [high], [runs(1, CPU=4, rank=1)], min_run_s=1.0).preempts == []
    held = node("a", CPU=4, held={"CPU": 1})
    assert admit([held], [high], [runs(1, CPU=3)]).preempts == []  # it would not help


def test_a_gang_that_takes_more_than_are_left_of_those_who_may_be_asked_gets_all_that_it_needs():
    """Half of them would be of no use to it, and it would wait for ever."""
    running = [runs(number, CPU=1, began_at=OLD + number) for number in range(1, 5)]
    high = [job(8, cpus(3), priority=2), job(9, cpus(1), priority=1)]
    decided = admit([A], high, running, max_preemptions=2)
    assert {each.by for each in decided.preempts} == {8}
    assert len(decided.preempts) == 3
    assert [each.by for each in admit([A], high[1:], running, max_preemptions=2).preempts] == [9]


def test_a_clock_that_was_set_back_protects_nobody_for_long():
    assert admit([A], [job(9, cpus(4), priority=1)], [runs(1, CPU=4, began_at=NOW + 7200)]).preempts == [Preempt(1, 9)]


def test_a_job_at_a_limit_may_take_the_place_of_a_lower_one_that_counts_for_it():
    running = [
        runs(number, CPU=1, queue="x", user=user, rank=rank) for number, user, rank in ((1, "me", 0), (2, "a", 5))
    ]
    high, low = job(9, queue="x", user="me", priority=9), job(8, queue="x", user="me")
    for terms in (Terms(maximum=0.5), Terms(max_running=2), Terms(max_running_per_user=1)):
        decided = admit([A], [high], running, {"x": terms})
        assert decided.preempts == [Preempt(1, 9)]
        assert decided.waits[9].code == Reason.PREEMPTING
        assert admit([A], [low], running, {"x": terms}).preempts == []
    assert admit([A], [high], running[1:], {"x": Terms(max_running=0)}).preempts == []  # it would not help
    both = [runs(1, CPU=1, queue="x", user="a"), runs(2, CPU=1, queue="x", user="me", rank=9)]
    assert admit([A], [high], both, {"x": Terms(max_running_per_user=1)}).preempts == []
    borrowed = [runs(number, CPU=1, queue="y") for number in (1, 2)]
    decided = admit([A], [job(9, queue="x"), job(3, cpus(3), queue="y")], borrowed, {"x": Terms(guaranteed=0.25)},
                    max_attempts=2)  # fmt: skip
    assert [each.by for each in decided.preempts] == [9]
    assert decided.waits[3].code == Reason.ATTEMPTS


def test_nobody_leaves_for_a_job_that_would_start_as_soon_without():
    high = job(9, cpus(4), priority=1)
    for ends_at, asked in ((NOW + 120, []), (NOW + 121, [Preempt(1, 9)])):
        assert admit([A], [high], [runs(1, CPU=4, ends_at=ends_at)], leave_s=120.0).preempts == asked
        at_a_limit = [runs(1, CPU=1), runs(2, CPU=1, rank=9, ends_at=ends_at)]
        decided = admit([A], [job(9, priority=1)], at_a_limit, {"default": Terms(max_running=2)}, leave_s=120.0)
        assert decided.preempts == asked


def test_those_whose_limit_nobody_can_satisfy_do_not_use_up_what_others_may_ask():
    running = [runs(1, CPU=2, user="ann", rank=10), runs(2, CPU=2, user="bob")]
    terms = {"default": Terms(max_running_per_user=1)}
    for other in ("bob", "carl"):  # at the limit too, and one who only lacks room
        waiting = [job(3, cpus(2), user="ann", priority=5), job(4, cpus(2), user=other, priority=5)]
        assert admit([A], waiting, running, terms).preempts == [Preempt(2, 4)]
    many = [job(number, cpus(2), user="ann", priority=number % 10) for number in range(10, 40)]
    assert admit([A], [*many, job(4, cpus(2), user="bob", priority=5)], running, terms).preempts == [Preempt(2, 4)]


def test_what_others_leave_is_reserved_for_whom_they_make_room():
    """Or those behind take it, and more have to leave."""
    decided = admit([A], [job(9, cpus(4), priority=5), job(10, cpus(2), max_runtime_s=1800)],
                    [runs(1, CPU=2, ends_at=NOW + 3600)])  # fmt: skip
    assert (started(decided), decided.preempts) == ([], [Preempt(1, 9)])
    elsewhere = [runs(1, "a", CPU=4, queue="y", ends_at=NOW + 3000), runs(2, "b", CPU=1)]
    small = [job(number, priority=1) for number in (6, 7, 8)]
    decided = admit([A, B], [job(5, cpus(4), priority=9), *small], elsewhere)
    assert (started(decided), decided.preempts) == ([], [Preempt(2, 5)])
    alike = [job(4, cpus(4), queue="y"), job(5, cpus(4), priority=9)]  # of a shape that waits already
    decided = admit([A, B], [*alike, *small], elsewhere, {"y": Terms(weight=9)})
    assert (started(decided), decided.preempts) == ([], [Preempt(2, 5)])


def test_one_that_made_room_often_does_not_ask_for_one_of_a_higher_priority():
    running = [runs(1, "a", CPU=4, rank=99, ends_at=NOW + 600), runs(2, "b", CPU=4, rank=2)]
    waiting = [job(3, cpus(4), priority=1, preemptions=4), job(4, cpus(4), priority=5)]
    assert admit([A, B], waiting, running).preempts == [Preempt(2, 4)]


def test_the_place_of_one_that_leaves_is_promised_once():
    running = [runs(1, CPU=1, queue="x", leaving=True)]
    waiting = [job(2, queue="x", priority=9, owed=True), *(job(n, queue="x", priority=n) for n in (3, 4, 5)), job(9)]
    decided = admit([A], waiting, running, {"x": Terms(max_running=1)})
    assert started(decided) == [9]
    assert [decided.waits[number].code for number in (2, 3, 4, 5)] == [Reason.PREEMPTING] + [Reason.QUEUE_RUNNING] * 3
    asked = [replace(waiting[0], owed=False), *waiting[1:]]  # the same in the round in which it is asked to leave
    decided = admit([A], asked, [replace(running[0], leaving=False)], {"x": Terms(max_running=1)})
    assert decided.preempts == [Preempt(1, 2)]
    assert [decided.waits[number].code for number in (2, 3, 4, 5)] == [Reason.PREEMPTING] + [Reason.QUEUE_RUNNING] * 3


def test_those_that_leave_already_are_not_joined_by_others():
    running = [runs(1, CPU=2, leaving=True), runs(2, CPU=2)]
    waits = admit([A], [job(9, cpus(2), priority=1)], running)
    assert waits.preempts == []
    assert waits.waits[9].text == "job 1 gives its machines back"
    more = admit([A], [job(9, cpus(2), priority=1), job(8, cpus(2), priority=1)], running)
    assert more.preempts == []  # one job of a kind at a time
    other = admit([A], [job(8, cpus(2), priority=2), job(9, cpus(1.5), priority=1)], running)
    assert other.preempts == [Preempt(2, 9)]  # what job 1 leaves is job 8's


def test_of_jobs_that_are_alike_the_one_with_a_claim_takes_a_place():
    both = [job(8, queue="x", priority=9), job(9, queue="y", priority=1)]
    assert admit([A], both, [runs(1, CPU=4, queue="y")]).preempts == [Preempt(1, 9)]


def test_a_guaranteed_share_comes_back_from_those_who_borrowed_it():
    terms = {"mine": Terms(guaranteed=0.5), "theirs": Terms(guaranteed=0.25), "others": Terms()}
    running = [runs(number, CPU=1, queue="theirs", rank=9, began_at=OLD + number) for number in (1, 2, 3)]
    running.append(runs(4, CPU=1, queue="others", rank=99))
    for wanted, victims in ((1, [3]), (2, [2, 3]), (3, [])):
        decided = admit([A], [job(9, cpus(wanted), queue="mine")], running, terms)
        assert sorted(each.job for each in decided.preempts) == victims
    assert admit([A], [job(9, queue="others", priority=9)], running, terms).preempts == []  # no claim, and not its own
    held = [runs(1, CPU=1, queue="theirs"), runs(2, CPU=3, queue="mine")]
    assert admit([A], [job(9, queue="mine")], held, terms).preempts == []  # it has its share


# ------------------------------------------------------------------ what always holds

bundles = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 3).map(float), max_size=2)
gangs = st.lists(bundles, max_size=4).map(lambda each: gang(*each))
clusters = st.lists(bundles, min_size=1, max_size=3).map(
    lambda totals: [Node(str(index), total, name=str(index)) for index, total in enumerate(totals)]
)
waitings = st.lists(
    st.builds(
        Waiting,
        st.integers(1, 50),
        gangs,
        priority=st.integers(-2, 2),
        queue=st.sampled_from("xy"),
        user=st.sampled_from("uv"),
        since=st.floats(NOW - 1e5, NOW),
        held_until=st.sampled_from([0.0, NOW, NOW + 1]),
        max_runtime_s=st.sampled_from([None, 50.0, 500.0]),
    ),
    unique_by=lambda each: each.id,
    max_size=8,
)
runnings = st.lists(
    st.builds(
        Running,
        st.integers(100, 150),
        st.dictionaries(st.sampled_from("012"), bundles, max_size=2),
        st.sampled_from([OLD, NOW - 10]),
        st.sampled_from([None, NOW - 5, NOW + 100, NOW + 1000]),
        rank=st.integers(-3, 3),
        queue=st.sampled_from("xy"),
        leaving=st.booleans(),
    ),
    unique_by=lambda each: each.job,
    max_size=4,
)
all_terms = st.fixed_dictionaries(
    {},
    optional={
        queue: st.builds(
            Terms,
            st.sampled_from([0.5, 1.0]),
            st.sampled_from([0.0, 0.5]),
            st.sampled_from([0.5, 1.0]),
            st.sampled_from([None, 1]),
            st.sampled_from([None, 1]),
            st.floats(0, 1),
        )
        for queue in "xy"
    },
)


def free_amounts(nodes, running, decided, waiting) -> dict[tuple[str, str], float]:
    left = {
        (each.id, name): each.total.get(name, 0.0) - each.held.get(name, 0.0)
        for each in nodes
        for name in ("CPU", "GPU")
    }
    for each in running:
        for where, amounts in each.usage.items():
            for name, amount in amounts.items():
                if (where, name) in left:
                    left[where, name] -= amount
    shapes = {each.id: each.shape for each in waiting}
    for start in decided.starts:
        shape = shapes[start.job]
        placed = zip(shape.gangs[start.placement.gang], start.placement.bundles, strict=True)
        for kind, where in (*placed, (shape.driver, start.placement.driver)):
            for name, amount in kind.resources():
                left[where, name] -= amount
    return left


@settings(deadline=None, max_examples=300)
@given(clusters, waitings, runnings, all_terms, st.randoms())
def test_invariants(nodes, waiting, running, terms, random):
    decided = decide(nodes, running, waiting, terms, Policy(), NOW)
    before = free_amounts(nodes, running, Round(), waiting)
    after = free_amounts(nodes, running, decided, waiting)
    assert all(after[key] >= min(0.0, before[key]) - 1e-6 for key in after), "capacity is never exceeded"
    assert sorted([*started(decided), *decided.waits]) == sorted(each.id for each in waiting)
    assert all(wait.text and wait.code in EXPLANATIONS for wait in decided.waits.values())
    asked = [each.job for each in decided.preempts]
    assert len(set(asked)) == len(asked)
    by = {each.job: each for each in running}
    for preempt in decided.preempts:
        victim, winner = by[preempt.job], next(each for each in waiting if each.id == preempt.by)
        assert not victim.leaving
        assert NOW - victim.began_at >= Policy().min_run_s
        assert victim.rank < winner.priority if victim.queue == winner.queue else terms[winner.queue].guaranteed > 0
    shuffled, others = list(waiting), list(running)
    random.shuffle(shuffled)
    random.shuffle(others)
    again = decide(nodes, others, shuffled, terms, Policy(), NOW)
    assert (again.starts, again.waits) == (decided.starts, decided.waits), "the order of the input does not matter"


@settings(deadline=None, max_examples=200)
@given(clusters, gangs, runnings)
def test_a_gang_alone_starts_exactly_if_a_placement_exists(nodes, shape, running):
    kinds = list(shape.gangs[0])
    free = free_amounts(nodes, running, Round(), [])

    def fits(rest, left) -> bool:
        if not rest:
            return True
        for each in nodes:
            taken = {(each.id, name): amount for name, amount in rest[0].resources()}
            room = all(left[key] >= amount for key, amount in taken.items())
            if room and fits(rest[1:], {key: left[key] - taken.get(key, 0.0) for key in left}):
                return True
        return False

    decided = decide(nodes, running, [job(1, shape)], {}, Policy(), NOW)
    assert (started(decided) == [1]) is fits(kinds, free)


@settings(deadline=None, max_examples=150)
@given(
    clusters, waitings, st.lists(st.tuples(st.sampled_from("012"), bundles, st.floats(1, 900)), min_size=1, max_size=4)
)
def test_who_goes_first_delays_no_reservation(nodes, waiting, used):
    """The first job can still start when it was told, if all others run as long as they may."""
    running = [
        Running(100 + index, {where: amounts}, OLD, NOW + rest, rank=99, queue="z")
        for index, (where, amounts, rest) in enumerate(used)
    ]
    large = Waiting(99, gang(*(dict(each.total) for each in nodes)), priority=9, since=NOW)
    decided = decide(nodes, running, [large, *waiting], {}, Policy(), NOW)
    if 99 in started(decided):
        return
    start_at = decided.waits[99].start_at
    if start_at is None:
        assert decided.waits[99].code == Reason.IMPOSSIBLE
        return
    limits = {each.id: each.max_runtime_s for each in waiting}
    stay = [start for start in decided.starts if (limits[start.job] or 1e9) > start_at - NOW]
    left = free_amounts(
        nodes, [each for each in running if (each.ends_at or 0.0) > start_at], Round(starts=stay), waiting
    )
    rest = [Node(each.id, {name: max(0.0, left[each.id, name]) for name in ("CPU", "GPU")}) for each in nodes]
    assert started(decide(rest, [], [large], {}, Policy(), NOW)) == [99]


def test_what_starts_now_is_expected_to_end():
    """Or a large job would reserve nothing in any round in which a small one goes first."""
    running = [runs(9, CPU=1, rank=9)]
    waiting = [job(1, priority=9, max_runtime_s=60.0), job(2, cpus(4), priority=5), job(3), job(4)]
    decided = admit([A], waiting, running)
    assert started(decided) == [1]
    assert {decided.waits[number].code for number in (3, 4)} == {Reason.RESERVED}
    first = [job(1, cpus(2), priority=9, max_runtime_s=60.0), job(2, cpus(4)), job(3, max_runtime_s=60.0), job(4)]
    decided = admit([A], first)
    assert started(decided) == [1, 3]
    assert decided.waits[2].start_at == NOW + 60


def test_one_job_is_enough_to_take_one_place():
    """Those that made room do not take the places of others of their own priority."""
    running = {number: runs(number, CPU=1, rank=0) for number in (1, 2, 3, 4)}
    waiting, moved = [job(5, priority=1)], list[tuple[int, int]]()
    for minute in range(0, 100, 10):
        now = NOW + 60.0 * minute
        decided = admit([A], waiting, list(running.values()), now=now)
        waiting = [each for each in waiting if each.id in decided.waits]
        running |= {start.job: runs(start.job, CPU=1, began_at=now, rank=1) for start in decided.starts}
        for each in decided.preempts:
            moved.append((each.job, each.by))
            del running[each.job]
            waiting = [Waiting(w.id, w.shape, w.priority, owed=w.id == each.by, since=w.since) for w in waiting]
            waiting.append(job(each.job, preemptions=1))
    assert moved == [(4, 5)] or moved == [(1, 5)]


def test_a_share_is_of_every_resource_also_of_those_nobody_waits_for():
    node_g = node("g", CPU=8, GPU=4)
    terms = {"a": Terms(guaranteed=0.5), "b": Terms()}
    running = [runs(1, "g", CPU=1, GPU=4, queue="a"), runs(2, "g", CPU=7, queue="b")]
    assert admit([node_g], [job(9, cpus(2), queue="a")], running, terms).preempts == []  # it holds all the GPUs


def test_no_more_is_reclaimed_than_is_guaranteed():
    ten, terms = node("a", CPU=10), {"a": Terms(guaranteed=0.5), "b": Terms()}
    running = [runs(number, CPU=1, queue="b") for number in range(1, 11)]
    decided = admit([ten], [job(98, cpus(4), queue="a"), job(99, cpus(5), queue="a")], running, terms)
    assert {each.by for each in decided.preempts} == {98}
    later = [job(98, cpus(4), queue="a", owed=True), job(99, cpus(3), queue="a")]
    leaving = [runs(number, CPU=1, queue="b", leaving=number < 5) for number in range(1, 11)]
    assert admit([ten], later, leaving, terms).preempts == []


def test_only_those_who_want_room_are_ahead():
    waiting = [
        job(1, cpus(9), priority=9),
        job(2, after=(7,), priority=9),
        job(3, cpus(4), priority=8),
        job(4, cpus(3)),
    ]
    waits = admit([A], waiting, [runs(9, CPU=2, rank=9)]).waits
    assert waits[3].text == "needs 4 CPU on one node; the largest free block is 2 CPU on a"
    assert waits[4].text.endswith("; 1 job ahead")


def test_nobody_starves_while_small_jobs_keep_coming():
    """A job that needs the whole cluster starts, though there is always a small one that would fit now."""
    running: dict[int, Running] = {}
    numbers, waiting = itertools.count(2), [job(1, cpus(4, 2))]
    for second in range(60):
        now = NOW + 60.0 * second
        waiting += [Waiting(next(numbers), cpus(1), since=now, max_runtime_s=300.0) for _ in range(3)]
        waiting.append(
            Waiting(next(numbers), cpus(1), priority=9 if second % 7 == 0 else 0, since=now, max_runtime_s=60.0)
        )
        running = {number: each for number, each in running.items() if (each.ends_at or 0.0) > now}
        limits = {each.id: each.max_runtime_s or 0.0 for each in waiting}
        decided = decide([A, B], list(running.values()), waiting, {}, Policy(), now)
        if 1 in started(decided):
            return
        for start in decided.starts:
            where = start.placement.bundles[0]
            running[start.job] = Running(start.job, {where: {"CPU": 1.0}}, now, now + limits[start.job])
        waiting = [each for each in waiting if each.id in decided.waits]
    pytest.fail("it never started")
