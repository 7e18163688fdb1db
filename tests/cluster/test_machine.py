"""Whatever people, Ray and machines do in any order: capacity is kept, no job lost or doubled, ended ones stay so."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster import snapshot, store as store_module
from cluster.accounts import Accounts
from cluster.dispatcher import Dispatcher, Patience
from cluster.errors import InputError
from cluster.spec import END_STATES, OPEN_STATES, Ending
from cluster.store import Store
from tests.cluster.conftest import spec
from tests.cluster.test_dispatcher import (
    NOW_OR_NEVER,
    RAY_CALLS,
    STORE_CALLS,
    Ear,
    FakeRay,
    KilledAtCountdown,
    KilledError,
)

FOR_EVER = 10**9
chosen = st.integers(0, 30)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    store = Store.open(f"sqlite:///{folder}/queue.db")
    Accounts(store).set_queue("guaranteed", guaranteed=0.5)
    return folder


class Machine(RuleBasedStateMachine):
    """A queue with a Ray of two nodes of two CPUs; jobs run until they are told to end."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dualview-machine-"))
        shutil.copytree(self.template, self.folder, dirs_exist_ok=True)
        self.store = Store.open(f"sqlite:///{self.folder}/queue.db")
        self.store.files.write(snapshot.name_of("0" * 64), [])
        self.ray = FakeRay({"job": []}, runs=FOR_EVER, names=("a", "b"))
        self.ear = Ear()
        self.countdown = [0]
        self.ended: dict[int, str] = {}
        self.number = 0

    def teardown(self) -> None:
        """In the end everything ends: nobody is left waiting for what never comes."""
        self.ray.names = ("a", "b")
        self.store.drain(False)
        for job in self.store.jobs("queued", *OPEN_STATES):
            self.store.release(job.id)
        for _ in range(6 * self.number + 20):
            if not self.store.jobs("queued", *OPEN_STATES):
                break
            self.dispatcher(0).step()
            for each in self.store.attempts():
                self.end(each.submission_id, 0)
        left = [(job.id, job.state, job.reason) for job in self.store.jobs("queued", *OPEN_STATES)]
        shutil.rmtree(self.folder)
        assert left == []

    def dispatcher(self, kill_at: int) -> Dispatcher:
        self.countdown[0] = kill_at
        return Dispatcher(
            KilledAtCountdown(self.store, STORE_CALLS, self.countdown),  # type: ignore[arg-type]
            KilledAtCountdown(self.ray, RAY_CALLS, self.countdown),  # type: ignore[arg-type]
            lambda _: None,
            self.ear,
            NOW_OR_NEVER,
            Patience(0.0, 0.0, 0.0),
        )

    def end(self, submission_id: str, code: int) -> None:
        if self.ray.left.get(submission_id, 0) > 1:
            self.ray.left[submission_id] = 1
            self.ray.ends[submission_id] = Ending(status="failed" if code else "succeeded", exit_code=code)

    def pick(self, index: int) -> int:
        return 1 + index % self.number

    @initialize()
    def begin(self) -> None:
        self.submit(1.0, 1, 0, "default", 0)

    @rule(
        cpus=st.sampled_from([0.5, 1.0, 2.0]),
        bundles=st.integers(0, 2),
        priority=st.integers(-1, 1),
        queue=st.sampled_from(["default", "guaranteed"]),
        after=st.integers(0, 3),
    )
    def submit(self, cpus: float, bundles: int, priority: int, queue: str, after: int) -> None:
        fields = {"driver": {} if bundles else {"CPU": cpus}, "gangs": [[{"CPU": cpus}] * bundles]}
        before = {max(1, self.number - after): "any"} if after and self.number else {}
        self.number += 1
        job = self.store.submit(
            spec(command=["job"], priority=priority, queue=queue, after=before, retries=1000, **fields)
        )
        assert job.id == self.number
        self.ray.bundle_cpus[str(job.id)] = cpus

    @rule(kill_at=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25]))
    def step(self, kill_at: int) -> None:
        with suppress(KilledError):
            self.dispatcher(kill_at).step()

    @rule(index=chosen, code=st.sampled_from([0, 0, 1, 75, -9]))
    def job_ends(self, index: int, code: int) -> None:
        running = sorted(name for name, left in self.ray.left.items() if left > 1)
        if running:
            self.end(running[index % len(running)], code)

    @rule(index=chosen, what=st.sampled_from(["cancel", "hold", "release", "requeue", "change"]))
    def somebody(self, index: int, what: str) -> None:
        job_id = self.pick(index)
        try:
            if what == "change":
                self.store.change(job_id, priority=index % 3)
            else:
                getattr(self.store, what)(job_id)
        except InputError:
            return
        if what == "requeue":
            self.ended.pop(job_id, None)

    @precondition(lambda self: self.ray.names == ("a", "b"))
    @rule()
    def a_node_is_lost(self) -> None:
        self.ray.names = ("a",)

    @precondition(lambda self: self.ray.names == ("a",))
    @rule()
    def a_node_is_there_again(self) -> None:
        self.ray.names = ("a", "b")

    @rule()
    def ray_restarts(self) -> None:
        self.ray.restart()
        self.ray.started.clear()  # a new head takes an id again, and nothing of the old one runs

    @rule(draining=st.booleans())
    def drain(self, draining: bool) -> None:
        self.store.drain(draining)

    @invariant()
    def jobs_are_what_they_were(self) -> None:
        jobs = self.store.jobs()
        assert [job.id for job in jobs] == list(range(1, self.number + 1))
        for job in jobs:
            if job.id in self.ended:
                assert job.state == self.ended[job.id]
            elif job.state in END_STATES:
                self.ended[job.id] = job.state
        open_ = [attempt.job_id for attempt in self.store.attempts()]
        assert sorted(open_) == [job.id for job in jobs if job.state in OPEN_STATES]
        assert len(self.ray.started) == len(set(self.ray.started))


def test_whatever_happens_in_any_order(template: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "SHORT_ATTEMPT_S", 0.0)
    Machine.template = template
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None,
            max_examples=40,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
