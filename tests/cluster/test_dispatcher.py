"""A dispatcher killed between any two of its effects neither loses a job nor runs it twice.

`FakeRay` stands in for Ray, so that every one of those points can be visited; tests/integration runs the real one.
"""

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from cluster.admission import Policy
from cluster.database import lock
from cluster.database.tables import Attempt
from cluster.dispatcher import IDLE_LOOK_S, Dispatcher, Patience, Usage
from cluster.errors import InputError, RayFailedError, RayUnavailableError, RefusedError, StoreUnavailableError
from cluster.placement import Node
from cluster.resources import Bundle
from cluster.spec import Alive, Beat, Ending
from cluster.store import Store
from tests.cluster.conftest import log_of, spec
from tests.disks import fill as fill_disk, small_disk

STORE_CALLS = (
    "attempts", "begin_attempt", "confirm", "end_attempt", "explain", "select", "waiting", "observe", "ask", "hear",
)  # fmt: skip
RAY_CALLS = ("nodes", "submit", "look", "stop", "log")
NOW_OR_NEVER = Policy(min_run_s=0.0, max_preemptions=1000)


class KilledError(BaseException):
    """Stands in for SIGKILL."""


class ExceededError(BaseException):
    """More was given of a node than it has; the dispatcher does not see it."""


@dataclass
class FakeRay:
    """Accepts an id once; a submission runs for `runs` queries, then ends with the next exit code of its script.

    It has `cpus` CPUs on each of its nodes, and counts how many its submissions take: their drivers, and their bundles
    as `bundle_cpus` says by job.
    """

    scripts: dict[str, list[int]]
    runs: int = 2
    cpus: float = 2.0
    names: tuple[str, ...] = ("a",)
    started: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    ends: dict[str, Ending] = field(default_factory=dict)
    takes: dict[str, dict[str, float]] = field(default_factory=dict)
    bundle_cpus: dict[str, float] = field(default_factory=dict)
    ignored_stops: int = 0
    cancel: Callable[[], object] = lambda: None
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    max_at_once: int = 0
    down: bool = False
    refuses: bool = False
    pending: bool = False
    words: str = ""

    def nodes(self, ours: Sequence[str]) -> tuple[list[Node], dict[str, Usage]]:
        if self.down:
            raise RayUnavailableError("no Ray job server answers")
        return [Node(name, {"CPU": self.cpus, "memory": 1e12}, name=name) for name in self.names], {}

    def submit(
        self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str],
        driver: Bundle | None = None, node: str | None = None,
    ) -> None:  # fmt: skip
        if self.refuses:
            raise RefusedError("working_dir is too large")
        if submission_id in self.ends or submission_id in self.left:
            return
        self.started.append(submission_id)
        self.environments[submission_id] = environment
        self.left[submission_id] = self.runs
        if command == ["unwanted"]:
            self.cancel()
            self.left[submission_id] = 10**9
        script = self.scripts[command[0]]
        code = script.pop(0) if script else 0
        self.ends[submission_id] = Ending(status="failed" if code else "succeeded", exit_code=code)
        assert driver is not None
        takes = self.takes[submission_id] = {str(node): driver.resources.get("CPU", 0.0)}
        for where in json.loads(environment["DUALVIEW_PLACEMENT"])["bundles"]:
            takes[where] = takes.get(where, 0.0) + self.bundle_cpus.get(environment["DUALVIEW_JOB"], 0.0)
        running = [name for name, left in self.left.items() if left > 0]
        self.max_at_once = max(self.max_at_once, len(running))
        for where in self.names:
            if sum(self.takes[name].get(where, 0.0) for name in running) > self.cpus:
                raise ExceededError(where)

    def look(self, submission_id: str) -> Alive | Ending:
        if self.down:
            raise RayUnavailableError("no Ray job server answers")
        if submission_id not in self.left:
            return Ending(status="lost")
        self.left[submission_id] -= 1
        if self.left[submission_id] > 0:
            return Alive(started=not self.pending, message=self.words)
        return self.ends[submission_id]

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if len(self.stopped) <= self.ignored_stops:
            return
        self.left[submission_id] = 1
        self.ends[submission_id] = Ending(status="stopped", exit_code=-15)

    def log(self, submission_id: str) -> list[bytes]:
        return [b"output of ", f"{submission_id}\n".encode()]

    def leave(self, submission_id: str, code: int = 75) -> None:
        """The program has read that it is to leave."""
        self.left[submission_id] = 1
        self.ends[submission_id] = Ending(status="failed", exit_code=code)

    def restart(self) -> None:
        """A new head: no history, and nothing runs."""
        self.left.clear()
        self.ends.clear()


class Ear:
    """The heartbeat server: what attempts said, and what they are answered."""

    def __init__(self) -> None:
        self.loopback = True
        self.beats: dict[str, Beat] = {}
        self.leave: dict[str, str] = {}
        self.forgotten: list[str] = []
        self.measured: dict[str, dict[tuple[str, str], int]] = {}

    def environment(self, submission_id: str) -> dict[str, str]:
        return {"DUALVIEW_QUEUE_URL": "http://queue/heartbeat", "DUALVIEW_QUEUE_TOKEN_FILE": f"/tokens/{submission_id}"}

    def heard(self) -> dict[str, Beat]:
        return self.beats

    def answer(self, leave) -> None:
        self.leave = dict(leave)

    def forget(self, submission_id: str) -> None:
        self.forgotten.append(submission_id)

    def serve(self, submission_ids) -> None:
        self.served = list(submission_ids)

    def measure(self, kind: str, counts) -> None:
        self.measured[kind] = dict(counts)


def made(
    store: object,
    ray: object,
    report: Callable[[str], object] = lambda text: None,
    ear: Ear | None = None,
    patience: Patience | None = None,
) -> Dispatcher:
    return Dispatcher(store, ray, report, ear or Ear(), NOW_OR_NEVER, patience)  # type: ignore[arg-type]


class KilledAtCountdown:
    """Passes calls on to `target`, and raises KilledError at the effect at which the countdown reaches 0."""

    def __init__(self, target: object, names: tuple[str, ...], countdown: list[int]) -> None:
        self._target, self._names, self._countdown = target, names, countdown

    def __getattr__(self, name: str) -> object:
        value = getattr(self._target, name)
        if name not in self._names:
            return value

        def call(*arguments: object) -> object:
            self._tick()
            result = value(*arguments)
            self._tick()
            return result

        return call

    def _tick(self) -> None:
        self._countdown[0] -= 1
        if self._countdown[0] == 0:
            raise KilledError


def drain(url: str, ray: FakeRay, kills: list[int], limit: int = 200) -> int:
    """Step until the queue is empty, with a new dispatcher after each kill; returns the rest of the last countdown."""
    ray.cancel = lambda: Store.open(url).cancel(4)
    remaining = list(kills)
    countdown = [remaining.pop(0) if remaining else 0]
    for _ in range(limit):
        store = Store.open(url)
        if not store.jobs("queued", "starting", "running"):
            return countdown[0]
        dispatcher = made(
            KilledAtCountdown(store, STORE_CALLS, countdown), KilledAtCountdown(ray, RAY_CALLS, countdown)
        )
        try:
            while store.jobs("queued", "starting", "running"):
                dispatcher.step()
        except KilledError:
            countdown[0] = remaining.pop(0) if remaining else 0
    raise AssertionError("the queue does not drain")


def fill(url: str) -> Store:
    """Four jobs: one fails, one works, one goes first and is preempted once, the last is cancelled as it runs."""
    store = Store.open(url)
    for name, priority in (("fails", 0), ("works", 0), ("preempted", 1), ("unwanted", -1)):
        store.submit(spec(name, command=[name], priority=priority))
    return store


def script() -> dict[str, list[int]]:
    return {"fails": [1], "works": [0], "preempted": [75, 0], "unwanted": [0]}


def check(store: Store, ray: FakeRay, at_once: int = 2) -> None:
    assert {job.name: job.state for job in store.jobs()} == {
        "fails": "failed", "works": "succeeded", "preempted": "succeeded", "unwanted": "cancelled",
    }  # fmt: skip
    assert max(Counter(ray.started).values()) == 1
    assert sorted(name.split("-", 2)[2] for name in ray.started) == ["1-1", "2-1", "3-1", "3-2", "4-1"]
    assert ray.started[0].endswith("-3-1")
    assert ray.max_at_once == at_once
    for job in store.jobs():
        for attempt in store.attempts(job.id):
            assert log_of(store, attempt).read_text() == f"output of {attempt.submission_id}\n"


def test_jobs_run_together_where_they_fit_by_priority(url: str):
    store, ray = fill(url), FakeRay(script())
    drain(url, ray, [])
    check(store, ray)
    first = ray.environments[ray.started[0]]
    assert first["DUALVIEW_JOB"] == "3"
    assert json.loads(first["DUALVIEW_PLACEMENT"]) == {"driver": "a", "bundles": []}
    assert first["DUALVIEW_QUEUE_TOKEN_FILE"] == f"/tokens/{ray.started[0]}"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue as `fill` makes it, to be copied: a new one takes longer than the whole of its jobs."""
    folder = tmp_path_factory.mktemp("full")
    fill(f"sqlite:///{folder}/queue.db")
    return folder


def test_killed_at_every_single_point(full: Path, tmp_path: Path):
    point, left = 0, 0
    while left <= 0:
        point += 1
        shutil.copytree(full, tmp_path / str(point))
        url = f"sqlite:///{tmp_path}/{point}/queue.db"
        store, ray = Store.open(url), FakeRay(script(), cpus=3.0)
        left = drain(url, ray, [point])
        check(store, ray, at_once=3)
    assert point > 100, "a whole run has more than 100 points"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=12))
def test_killed_again_and_again(full: Path, tmp_path_factory: pytest.TempPathFactory, kills: list[int]):
    folder = tmp_path_factory.mktemp("queue")
    shutil.copytree(full, folder, dirs_exist_ok=True)
    url = f"sqlite:///{folder}/queue.db"
    store, ray = Store.open(url), FakeRay(script())
    drain(url, ray, kills)
    check(store, ray)


def test_a_head_that_is_lost_costs_an_attempt_and_no_job(store: Store):
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0, 0]}, runs=3)
    dispatcher = made(store, ray)
    dispatcher.step()
    ray.restart()
    dispatcher.step()
    assert [attempt.status for attempt in store.attempts(job.id)] == ["lost", None]
    for _ in range(3):
        dispatcher.step()
    assert store.job(job.id).state == "succeeded"
    assert len(ray.started) == 2


def test_what_ray_refuses_three_times_fails_with_its_message(store: Store):
    job = store.submit(spec())
    dispatcher = made(store, FakeRay({"true": []}, refuses=True))
    for _ in range(3):
        dispatcher.step()
    ended = store.job(job.id)
    assert ended.state == "failed"
    assert "working_dir is too large" in ended.reason


def test_a_running_job_is_stopped_even_if_ray_loses_the_first_requests(store: Store):
    job = store.submit(spec(command=["works"]))
    ray, reported = FakeRay({"works": [0]}, runs=9, ignored_stops=2), []
    dispatcher = made(store, ray, reported.append)
    dispatcher.step()
    store.cancel(job.id)
    for _ in range(4):
        dispatcher.step()
    assert store.job(job.id).state == "cancelled"
    assert len(ray.stopped) == 3
    assert reported.count("job 1 is being stopped") == 1


def test_output_that_cannot_be_fetched_does_not_keep_a_job_from_ending(store: Store, monkeypatch: pytest.MonkeyPatch):
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0]}, runs=1)
    ray.log = lambda submission_id: (_ for _ in ()).throw(RayUnavailableError("the node is gone"))  # type: ignore[method-assign]
    dispatcher = made(store, ray)
    dispatcher.step()
    dispatcher.step()
    assert store.job(job.id).state == "succeeded"
    (attempt,) = store.attempts(job.id)
    assert log_of(store, attempt).read_text() == "(the output could not be fetched: the node is gone)\n"
    log_of(store, attempt).unlink()
    log_of(store, attempt).parent.rmdir()
    log_of(store, attempt).parent.write_text("a file where the folder should be")
    second = store.submit(spec(command=["works"]))
    for _ in range(3):
        dispatcher.step()
    assert store.job(second.id).state != "succeeded"  # it is tried again for a while
    monkeypatch.setattr("cluster.dispatcher.SAVE_S", 0.0)
    dispatcher.step()
    assert store.job(second.id).state == "succeeded"


def test_a_job_cancelled_before_ray_knows_it_never_starts(url: str):
    store, ray = Store.open(url), FakeRay({"works": [0]})
    job = store.submit(spec(command=["works"]))
    assert store.begin_attempt(job.id)
    store.cancel(job.id)
    drain(url, ray, [])
    assert store.job(job.id).state == "cancelled"
    assert ray.started == []


def test_waiting_jobs_show_that_ray_does_not_answer_and_start_when_it_does(store: Store):
    job = store.submit(spec(command=["works"]))
    ray, reported = FakeRay({"works": [0]}, down=True), []
    stop = threading.Event()

    def report(text: str) -> None:
        reported.append((text, store.job(job.id).reason))
        if "trying again" in text:
            threading.Timer(0.1, lambda: setattr(ray, "down", False)).start()

    made(store, ray, report).run(0.05, drain=True, stop=stop)
    assert store.job(job.id).state == "succeeded"
    assert [text for text, _ in reported] == [
        "no Ray job server answers; trying again",
        "job 1 starts (attempt 1)",
        "Ray and the queue's database are available again",
        "job 1 succeeded: exit 0",
    ]
    assert reported[1][1] == "attempt 1 is starting with room on 1 node"


def test_a_full_disk_stops_nothing_for_longer_than_it_is_full(tmp_path: Path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store.open(f"sqlite:///{disk}/queue.db")
        for _ in range(3):
            store.submit(spec(command=["works"]))
        reported: list[str] = []
        ray, stop = FakeRay({"works": []}, cpus=3.0, runs=10), threading.Event()
        running = threading.Thread(target=lambda: made(store, ray, reported.append).run(0.05, drain=True, stop=stop))
        running.start()
        while len(ray.started) < 3:
            time.sleep(0.01)
        ballast = fill_disk(disk)
        while not any("full" in text for text in reported):
            time.sleep(0.01)
        assert [job.id for job in Store.open(f"sqlite:///{disk}/queue.db").jobs()] == [1, 2, 3]
        with pytest.raises(StoreUnavailableError, match="full"):
            store.submit(spec(command=["works"]))
        ballast.unlink()
        running.join(30)
        assert [job.state for job in store.jobs()] == ["succeeded"] * 3
        assert len(ray.started) == 3
        assert "Ray and the queue's database are available again" in reported


def test_a_new_job_does_not_wait_for_the_next_pass(store: Store):
    ray, stop = FakeRay({"works": [0]}), threading.Event()
    threading.Timer(0.3, lambda: store.submit(spec(command=["works"]))).start()
    thread = threading.Thread(target=made(store, ray, lambda text: stop.set()).run, args=(3600.0, False, stop))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(ray.started) == 1


def test_a_stop_leaves_jobs_running(store: Store):
    store.submit(spec(command=["works"]))
    stop = threading.Event()
    ray = FakeRay({"works": [0]}, runs=10**9)
    made(store, ray, lambda text: stop.set()).run(0.01, drain=False, stop=stop)
    assert [job.state for job in store.jobs()] == ["starting"]
    assert ray.stopped == []


def test_one_dispatcher_a_queue(store: Store):
    with (
        lock.hold(store.anchor),
        pytest.raises(InputError, match="another dispatcher serves the queue"),
        lock.hold(store.anchor),
    ):
        pass
    with lock.hold(store.anchor):
        pass


# ------------------------------------------------------------------ what attempts are asked


def steps(dispatcher: Dispatcher, count: int) -> None:
    for _ in range(count):
        dispatcher.step()


def test_a_higher_priority_takes_the_place_of_a_lower_one_which_goes_on_afterwards(store: Store):
    low = store.submit(spec("low", command=["low"], driver={"CPU": 2.0}))
    ray, ear = FakeRay({"low": [0, 0], "high": [0]}, runs=5), Ear()
    dispatcher = made(store, ray, ear=ear)
    steps(dispatcher, 2)
    assert store.job(low.id).state == "running"
    high = store.submit(spec("high", command=["high"], priority=1, driver={"CPU": 2.0}))
    dispatcher.step()
    first = ray.started[0]
    assert ear.leave == {first: f"makes room for job {high.id}"}
    assert store.job(low.id).reason == f"makes room for job {high.id}; asked to leave"
    assert (store.job(high.id).reason, store.job(high.id).reason_code) == (
        "job 1 gives its machines back",
        "preempting",
    )
    ray.leave(first)
    dispatcher.step()
    assert store.job(low.id).preemptions == 1
    assert ray.started[1].endswith("-2-1")
    steps(dispatcher, 12)
    assert [store.job(number).state for number in (low.id, high.id)] == ["succeeded", "succeeded"]
    assert [attempt.asked_by for attempt in store.attempts(low.id)] == [high.id, None]
    texts = [event.text for number in (low.id, high.id) for event in store.events(number)]
    assert "attempt 1 is asked to leave: makes room for job 2" in texts
    assert "job 1 is asked to make room for it" in texts
    assert ear.forgotten == ray.started
    assert ray.stopped == []


@pytest.mark.parametrize(("says", "grace"), [(True, "leave_s"), (False, "silent_s")])
def test_who_does_not_leave_is_stopped_and_queued_again_whatever_its_exit_code(store: Store, says: bool, grace: str):
    low = store.submit(spec("low", command=["low"], driver={"CPU": 2.0}))
    ray, ear = FakeRay({"low": [0], "high": [0]}, runs=10**6), Ear()
    dispatcher = made(store, ray, ear=ear, patience=replace(Patience(leave_s=1e9, silent_s=1e9), **{grace: 0.0}))
    dispatcher.step()
    if says:
        ear.beats[ray.started[0]] = Beat(step=7, saved_step=5, at=1.0)
    store.submit(spec("high", command=["high"], priority=1, driver={"CPU": 2.0}))
    steps(dispatcher, 2)
    assert ray.stopped == [ray.started[0]]
    ray.ends[ray.started[0]] = Ending(status="stopped", exit_code=-9)
    dispatcher.step()
    assert store.job(low.id).state == "queued"
    [attempt] = store.attempts(low.id)
    assert attempt.reason == "makes room for job 2; left by Ray, since it did not stop by itself; it will go on"
    assert (attempt.step, attempt.saved_step) == ((7, 5) if says else (None, None))


def test_a_job_whose_gang_does_not_form_is_tried_again_and_then_fails(store: Store):
    job = store.submit(spec("slow", command=["slow"], says_when=True, retries=1))
    ray, ear = FakeRay({"slow": [0, 0]}, runs=10**6, pending=True, words="no such file"), Ear()
    dispatcher = made(store, ray, ear=ear, patience=Patience(start_s=0.0, silent_s=0.0, leave_s=0.0))
    steps(dispatcher, 2)
    assert store.job(job.id).state == "starting"
    assert store.job(job.id).reason == "Ray has not started its command yet: no such file"
    ray.pending = False
    steps(dispatcher, 2)
    assert store.job(job.id).reason == (
        "its command runs, and has said nothing in 0 s: it prepares data, or its heartbeats do not arrive"
    )
    assert ray.stopped == []  # it may prepare data for hours
    ear.beats[ray.started[0]] = Beat(state="starting", doing="starting workers", at=1.0)
    steps(dispatcher, 1)
    assert store.job(job.id).reason == "starting workers"
    steps(dispatcher, 3)
    assert ray.stopped
    assert store.attempts(job.id)[0].reason == "its gang did not form within 0 s; it will be tried again"
    ear.beats[ray.started[1]] = Beat(state="starting", at=1.0)
    steps(dispatcher, 8)
    assert store.job(job.id).state == "failed"
    assert store.job(job.id).reason == "its gang did not form within 0 s; gave up after 2 such attempts"


def test_a_clock_that_is_set_back_does_not_lengthen_a_grace(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.submit(spec(command=["works"]))
    ray, now = FakeRay({"works": [0]}, runs=10**6), time.time()
    dispatcher = made(store, ray, patience=Patience(leave_s=60.0, silent_s=60.0))
    steps(dispatcher, 2)
    store.requeue(1)
    dispatcher.step()
    assert ray.stopped == []
    monkeypatch.setattr("cluster.dispatcher.time.time", lambda: now - 3600)
    dispatcher.step()
    assert ray.stopped == ray.started


def test_a_clock_that_is_set_does_not_change_how_long_a_job_has_run(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.submit(spec(command=["works"], max_runtime_s=100.0))
    ray, ear, offset = FakeRay({"works": [0]}, runs=10**6), Ear(), [0.0]
    clocks = {name: getattr(time, name) for name in ("time", "monotonic")}
    monkeypatch.setattr("cluster.dispatcher.time.time", lambda: clocks["time"]() + offset[0])
    dispatcher = made(store, ray, ear=ear)
    steps(dispatcher, 2)
    for offset[0] in (7200.0, -7200.0):
        dispatcher.step()
        assert ear.leave == {}
    monkeypatch.setattr("cluster.dispatcher.time.monotonic", lambda: clocks["monotonic"]() + 91)
    dispatcher.step()
    assert ear.leave == {ray.started[0]: "it ran for its --max-runtime of 100 s"}


def test_nodes_that_come_while_nothing_runs_are_seen(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Or `submit` refuses what only they could hold."""
    ray = FakeRay({}, names=("a",))
    dispatcher = made(store, ray)
    dispatcher.step()
    assert len(store.nodes()) == 1
    ray.names = ("a", "b")
    dispatcher.step()
    assert len(store.nodes()) == 1  # it does not ask all the time
    clock = time.monotonic
    monkeypatch.setattr("cluster.dispatcher.time.monotonic", lambda: clock() + IDLE_LOOK_S)
    dispatcher.step()
    assert len(store.nodes()) == 2


@pytest.mark.parametrize(("limit", "stopped"), [(1.0, True), (1000.0, False)])
def test_who_ignores_its_limit_is_stopped_at_it(store: Store, limit: float, stopped: bool):
    """However long others may take to leave: what waits behind it counts on its time."""
    store.submit(spec(command=["works"], max_runtime_s=limit))
    ray, ear = FakeRay({"works": [0]}, runs=10**6), Ear()
    dispatcher = made(store, ray, ear=ear, patience=Patience(leave_s=1e6, silent_s=1e6))
    steps(dispatcher, 2)
    ear.beats[ray.started[0]] = Beat(step=3, at=1.0)
    [attempt] = store.attempts()
    with store.session() as session:
        stored = session.get_one(Attempt, attempt.id)
        stored.began_at -= limit
        stored.asked, stored.asked_reason, stored.asked_at = "limit", "its time is up", time.time() - 0.2
    dispatcher.step()
    assert ray.stopped == ([ray.started[0]] if stopped else [])


@pytest.mark.parametrize(("left", "stopped"), [(-1.0, True), (50.0, False)])
def test_a_program_that_sends_no_heartbeats_has_all_of_its_time(store: Store, left: float, stopped: bool):
    """It does not read that it is asked, and may end by itself before."""
    store.submit(spec(command=["works"], max_runtime_s=1000.0))
    ray = FakeRay({"works": [0]}, runs=10**6)
    dispatcher = made(store, ray, patience=Patience(silent_s=0.0))
    steps(dispatcher, 2)
    [attempt] = store.attempts()
    with store.session() as session:
        stored = session.get_one(Attempt, attempt.id)
        stored.began_at -= 1000.0 - left
        stored.asked, stored.asked_reason, stored.asked_at = "limit", "its time is up", time.time() - 1.0
    dispatcher.step()
    assert ray.stopped == ([ray.started[0]] if stopped else [])


def test_an_attempt_is_judged_by_its_last_words(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Those that come while an output is kept: the checkpoint that it wrote on leaving."""
    job = store.submit(spec("trains", command=["trains"], retries=0))
    ray, ear = FakeRay({"trains": [75, 75]}, runs=3), Ear()
    last = {1: 200, 2: 300}  # by attempt; the first checkpoint of the second is no news

    def log(name: str) -> list[bytes]:
        ear.beats[name] = Beat(step=300, saved_step=last[len(ray.started)], at=2.0)
        return [b"an output"]

    monkeypatch.setattr(ray, "log", log)
    dispatcher = made(store, ray, ear=ear)
    for _ in range(20):
        dispatcher.step()
        if len(ray.started) == 3:
            break
        ear.beats.setdefault(ray.started[-1], Beat(step=200, saved_step=200, at=1.0))
    assert [attempt.saved_step for attempt in store.attempts(job.id)] == [200, 300, None]
    assert not any(attempt.fault for attempt in store.attempts(job.id))


def test_a_job_that_says_when_it_runs_is_running_then(store: Store):
    job = store.submit(spec("trains", command=["trains"], says_when=True))
    ray, ear = FakeRay({"trains": [0]}, runs=10**6), Ear()
    dispatcher = made(store, ray, ear=ear)
    steps(dispatcher, 2)
    assert store.job(job.id).state == "starting"
    assert store.job(job.id).reason == "its command runs, and has said nothing yet"
    ear.beats[ray.started[0]] = Beat(step=3, steps=9, doing="training", at=1.0)
    dispatcher.step()
    assert (store.job(job.id).state, store.job(job.id).reason) == ("running", "training, step 3 of 9")


@pytest.mark.parametrize(("choice", "state"), [("requeue", "queued"), ("fail", "failed")])
def test_a_job_at_its_limit_of_time_checkpoints_first(store: Store, choice: str, state: str):
    job = store.submit(spec("long", command=["long"], max_runtime_s=0.001, at_the_limit=choice))
    ray, ear = FakeRay({"long": [0, 0]}, runs=10**6), Ear()
    dispatcher = made(store, ray, ear=ear)
    steps(dispatcher, 2)
    assert ear.leave == {ray.started[0]: "it ran for its --max-runtime of 0.001 s"}
    ray.leave(ray.started[0])
    held, ray.names = ray.names, ()  # so that it does not start again at once
    dispatcher.step()
    ray.names = held
    assert store.job(job.id).state == state
    assert store.job(job.id).preemptions == 0


def test_a_job_on_a_node_that_is_gone_leaves(store: Store):
    store.submit(spec("gang", command=["gang"], gangs=[[{"CPU": 2.0}, {"CPU": 2.0}]], driver={}))
    ray, ear = FakeRay({"gang": [0]}, runs=10**6, names=("a", "b")), Ear()
    dispatcher = made(store, ray, ear=ear)
    steps(dispatcher, 2)
    assert json.loads(ray.environments[ray.started[0]]["DUALVIEW_PLACEMENT"])["bundles"] == ["a", "b"]
    assert ear.leave == {}
    ray.names = ("a",)
    dispatcher.step()
    assert ear.leave == {ray.started[0]: "node b that it was given is gone"}


def test_dependencies(store: Store):
    first, second = store.submit(spec("first", command=["bad"])), store.submit(spec("second", command=["works"]))
    ok = store.submit(spec("ok", command=["works"], after={first.id: "ok"}))
    further = store.submit(spec("further", command=["works"], after={ok.id: "ok"}))
    ended = store.submit(spec("any", command=["works"], after={first.id: "any", second.id: "ok"}))
    ray = FakeRay({"bad": [1], "works": []}, runs=2, cpus=9.0)
    dispatcher = made(store, ray)
    dispatcher.step()
    assert store.job(ended.id).reason == "waits for job 1, 2"
    steps(dispatcher, 8)
    assert {job.name: job.state for job in store.jobs()} == {
        "first": "failed", "second": "succeeded", "ok": "cancelled", "further": "cancelled", "any": "succeeded",
    }  # fmt: skip
    assert store.job(ok.id).reason == "job 1, which it comes after, failed"
    assert store.job(further.id).reason == "job 3, which it comes after, cancelled"


def test_a_job_that_cannot_be_handled_is_parked_and_the_others_go_on(store: Store):
    bad, good = store.submit(spec("bad", command=["works"])), store.submit(spec("good", command=["works"]))
    with store.session() as session:
        session.get_one(type(bad), bad.id).gangs = [[{"CPU": "many"}]]
    ray = FakeRay({"works": []})
    dispatcher = made(store, ray)
    steps(dispatcher, 4)
    assert store.job(good.id).state == "succeeded"
    assert len([event for event in store.events(bad.id) if event.text.startswith("parked")]) == 1
    store.drain(True)
    dispatcher.step()
    store.drain(False)
    dispatcher.step()
    parked = store.job(bad.id)
    assert (parked.state, parked.hold, parked.reason_code) == ("queued", "parked", "parked")
    assert parked.reason.startswith("the dispatcher cannot handle it: ValidationError: 1 validation error")


def test_a_job_parked_with_an_attempt_that_ray_never_saw_waits_without_it(store: Store):
    job = store.submit(spec(command=["works"]))
    ray, ear = FakeRay({"works": []}), Ear()
    dispatcher = made(store, ray, ear=ear)

    def full(_: str) -> dict[str, str]:
        raise OSError("No space left on device")

    ear.environment, usual = full, ear.environment  # type: ignore[method-assign]
    dispatcher.step()
    assert store.job(job.id).hold == "parked"
    dispatcher.step()
    assert [attempt.status for attempt in store.attempts(job.id)] == ["unstarted"]
    assert (store.job(job.id).state, store.job(job.id).hold) == ("queued", "parked")
    dispatcher.step()
    assert store.job(job.id).reason == "the dispatcher cannot handle it: OSError: No space left on device"
    ear.environment = usual  # type: ignore[method-assign]
    store.release(job.id)
    steps(dispatcher, 4)
    assert store.job(job.id).state == "succeeded"


def test_what_is_parked_by_mistake_is_not_once_it_is_with_ray(store: Store):
    job = store.submit(spec(command=["works"]))
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    store.park(job.id, "a full disk")
    store.confirm(attempt)
    assert (store.job(job.id).hold, store.job(job.id).problem) == (None, "")


def test_what_ray_cannot_do_for_one_job_does_not_keep_the_others(store: Store):
    bad, good = store.submit(spec("bad", command=["bad"])), store.submit(spec("good", command=["works"]))
    ray, reported = FakeRay({"bad": [0], "works": []}), []
    usual = ray.submit

    def submit(submission_id: str, command: list[str], *rest: object) -> None:
        if command == ["bad"]:
            raise RayFailedError("Ray's job server failed: status code 500")
        usual(submission_id, command, *rest)  # type: ignore[arg-type]

    ray.submit = submit  # type: ignore[method-assign]
    dispatcher = made(store, ray, reported.append)
    steps(dispatcher, 5)
    assert store.job(good.id).state == "succeeded"
    assert (store.job(bad.id).state, store.job(bad.id).reason) == (
        "starting",
        "Ray's job server failed: status code 500",
    )
    assert len([line for line in reported if "status code 500" in line]) == 1
    ray.submit = usual  # type: ignore[method-assign]
    steps(dispatcher, 3)
    assert store.job(bad.id).state == "succeeded"


def test_an_attempt_asked_to_leave_before_ray_knows_it_costs_nothing(store: Store):
    job = store.submit(spec(command=["works"], retries=0))
    assert store.begin_attempt(job.id)
    store.requeue(job.id)
    ray = FakeRay({"works": []})
    dispatcher = made(store, ray)
    dispatcher.step()
    assert store.attempts(job.id)[0].reason == "requeued by hand; it had not started"
    steps(dispatcher, 4)
    assert (store.job(job.id).state, len(ray.started)) == ("succeeded", 1)


def test_that_other_machines_cannot_send_heartbeats_is_said_once(store: Store):
    store.submit(spec(command=["works"]))
    ray, reported = FakeRay({"works": []}), []
    nodes = [Node(name, {"CPU": 2.0, "memory": 1e12}, host=name) for name in "ab"]
    ray.nodes = lambda ours: (nodes, {})  # type: ignore[method-assign]
    steps(made(store, ray, reported.append), 3)
    assert len([line for line in reported if line.startswith("note: the nodes are on 2 machines")]) == 1


def test_expected_starts_are_kept_between_forecasts(store: Store, monkeypatch: pytest.MonkeyPatch):
    for _ in range(3):
        store.submit(spec(command=["works"], max_runtime_s=600.0))
    monkeypatch.setattr("cluster.dispatcher.FORECAST_REST", 1e9)
    dispatcher = made(store, FakeRay({"works": []}, cpus=1.0, runs=100))
    dispatcher.step()
    first = [job.start_at for job in store.jobs("queued")]
    for number, each in enumerate(first, 1):
        assert each is not None
        assert each % 60 == 0
        assert 600 * number - 10 <= each - time.time() <= 600 * number + 60
    store.submit(spec(command=["works"], max_runtime_s=600.0))
    dispatcher.step()
    assert [job.start_at for job in store.jobs("queued")] == [*first, None]
    made(store, FakeRay({"works": []}, cpus=1.0, runs=100))
    monkeypatch.setattr("cluster.dispatcher.FORECAST_REST", 0.0)
    dispatcher._forecast_at = 0.0
    dispatcher.step()
    assert None not in [job.start_at for job in store.jobs("queued")]


def test_a_queue_that_drains_starts_nothing(store: Store):
    job = store.submit(spec(command=["works"]))
    store.drain(True)
    dispatcher = made(store, FakeRay({"works": []}))
    dispatcher.step()
    assert store.job(job.id).reason_code == "draining"
    store.drain(False)
    dispatcher.step()
    assert store.job(job.id).state == "starting"


def test_how_many_wait_and_why_is_measured(store: Store):
    for cpus in (2.0, 2.0, 1.0, 9.0):
        store.submit(spec(command=["works"], driver={"CPU": cpus}))
    ear = Ear()
    dispatcher = made(store, FakeRay({"works": []}, runs=3), ear=ear)
    steps(dispatcher, 2)
    assert ear.measured["waiting"] == {("default", "resources"): 2, ("default", "impossible"): 1}
    assert ear.measured["running"] == {("default", "starting"): 1}
    store.cancel(4)
    steps(dispatcher, 12)
    assert ear.measured == {"waiting": {}, "running": {}}


def test_reasons_are_written_when_they_change(store: Store, monkeypatch: pytest.MonkeyPatch):
    for _ in range(3):
        store.submit(spec(command=["works"], driver={"CPU": 2.0}))
    written: list[dict[int, object]] = []
    explain = store.explain
    monkeypatch.setattr(store, "explain", lambda waits: (written.append(dict(waits)), explain(waits)))
    dispatcher = made(store, FakeRay({"works": []}, runs=10**6))
    steps(dispatcher, 4)
    assert [sorted(each) for each in written] == [[2, 3]]
