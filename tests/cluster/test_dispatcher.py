"""A dispatcher killed between any two of its effects neither loses a job nor runs it twice.

`FakeRay` stands in for Ray, so that every one of those points can be visited; tests/integration runs the real one.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from cluster.dispatcher import Dispatcher, dispatcher_lock
from cluster.errors import InputError, RayUnavailableError, RefusedError
from cluster.spec import Ending
from cluster.store import Store
from tests.cluster.conftest import spec

STORE_CALLS = ("attempts", "begin_attempt", "confirm", "end_attempt", "explain", "job", "jobs")
RAY_CALLS = ("nodes", "submit", "ending", "stop", "log")


class KilledError(BaseException):
    """Stands in for SIGKILL."""


@dataclass
class FakeRay:
    """Accepts an id once; a submission runs for `runs` queries, then ends with the next exit code of its script."""

    scripts: dict[str, list[int]]
    runs: int = 2
    started: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    ends: dict[str, Ending] = field(default_factory=dict)
    ignored_stops: int = 0
    cancel: Callable[[], object] = lambda: None
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    max_at_once: int = 0
    down: bool = False
    refuses: bool = False

    def nodes(self):
        if self.down:
            raise RayUnavailableError("no Ray job server answers")
        return [{"CPU": 2.0}]

    def submit(self, submission_id: str, command: list[str], snapshot: Path, environment: dict[str, str]) -> None:
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
        self.max_at_once = max(self.max_at_once, sum(left > 0 for left in self.left.values()))

    def ending(self, submission_id: str) -> Ending | None:
        if self.down:
            raise RayUnavailableError("no Ray job server answers")
        if submission_id not in self.left:
            return Ending(status="lost")
        self.left[submission_id] -= 1
        return None if self.left[submission_id] > 0 else self.ends[submission_id]

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if len(self.stopped) <= self.ignored_stops:
            return
        self.left[submission_id] = 1
        self.ends[submission_id] = Ending(status="stopped", exit_code=-15)

    def log(self, submission_id: str) -> list[bytes]:
        return [b"output of ", f"{submission_id}\n".encode()]

    def restart(self) -> None:
        """A new head: no history, and nothing runs."""
        self.left.clear()
        self.ends.clear()


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
        if not store.jobs("queued", "running"):
            return countdown[0]
        dispatcher = Dispatcher(
            KilledAtCountdown(store, STORE_CALLS, countdown),  # type: ignore[arg-type]
            KilledAtCountdown(ray, RAY_CALLS, countdown),  # type: ignore[arg-type]
            lambda text: None,
        )
        try:
            while store.jobs("queued", "running"):
                dispatcher.step()
        except KilledError:
            countdown[0] = remaining.pop(0) if remaining else 0
    raise AssertionError("the queue does not drain")


def fill(url: str) -> Store:
    """Four jobs: one fails, one works, one goes first and is preempted once, the last is cancelled as it runs."""
    store = Store.open(url)
    store.submit(spec("fails", command=["fails"]))
    store.submit(spec("works", command=["works"]))
    store.submit(spec("preempted", command=["preempted"], priority=1))
    store.submit(spec("unwanted", command=["unwanted"], priority=-1))
    return store


def script() -> dict[str, list[int]]:
    return {"fails": [1], "works": [0], "preempted": [75, 0], "unwanted": [0]}


def check(store: Store, ray: FakeRay) -> None:
    assert {job.name: job.state for job in store.jobs()} == {
        "fails": "failed", "works": "succeeded", "preempted": "succeeded", "unwanted": "cancelled",
    }  # fmt: skip
    assert max(Counter(ray.started).values()) == 1
    assert [name.split("-", 2)[2] for name in ray.started] == ["3-1", "3-2", "1-1", "2-1", "4-1"]
    assert ray.max_at_once == 1
    for job in store.jobs():
        for attempt in store.attempts(job.id):
            assert store.log(attempt).read_text() == f"output of {attempt.submission_id}\n"


def test_jobs_run_one_at_a_time_by_priority(url: str):
    store, ray = fill(url), FakeRay(script())
    drain(url, ray, [])
    check(store, ray)
    assert ray.environments[ray.started[0]]["DUALVIEW_JOB"] == "3"


def test_killed_at_every_single_point(tmp_path: Path):
    point, left = 0, 0
    while left <= 0:
        point += 1
        url = f"sqlite:///{tmp_path}/{point}/queue.db"
        store, ray = fill(url), FakeRay(script())
        left = drain(url, ray, [point])
        check(store, ray)
    assert point > 100, "a whole run has more than 100 points"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=12))
def test_killed_again_and_again(tmp_path_factory: pytest.TempPathFactory, kills: list[int]):
    url = f"sqlite:///{tmp_path_factory.mktemp('queue')}/queue.db"
    store, ray = fill(url), FakeRay(script())
    drain(url, ray, kills)
    check(store, ray)


def test_a_head_that_is_lost_costs_an_attempt_and_no_job(store: Store):
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0, 0]}, runs=3)
    dispatcher = Dispatcher(store, ray, lambda text: None)
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
    dispatcher = Dispatcher(store, FakeRay({"true": []}, refuses=True), lambda text: None)
    for _ in range(3):
        dispatcher.step()
    ended = store.job(job.id)
    assert ended.state == "failed"
    assert "working_dir is too large" in ended.reason


def test_a_running_job_is_stopped_even_if_ray_loses_the_first_requests(store: Store):
    job = store.submit(spec(command=["works"]))
    ray, reported = FakeRay({"works": [0]}, runs=9, ignored_stops=2), []
    dispatcher = Dispatcher(store, ray, reported.append)
    dispatcher.step()
    store.cancel(job.id)
    for _ in range(4):
        dispatcher.step()
    assert store.job(job.id).state == "cancelled"
    assert len(ray.stopped) == 3
    assert reported.count("job 1 is being stopped") == 1


def test_output_that_cannot_be_fetched_does_not_keep_a_job_from_ending(store: Store):
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0]}, runs=1)
    ray.log = lambda submission_id: (_ for _ in ()).throw(RayUnavailableError("the node is gone"))  # type: ignore[method-assign]
    dispatcher = Dispatcher(store, ray, lambda text: None)
    dispatcher.step()
    dispatcher.step()
    assert store.job(job.id).state == "succeeded"
    (attempt,) = store.attempts(job.id)
    assert store.log(attempt).read_text() == "(the output could not be fetched: the node is gone)\n"
    store.log(attempt).unlink()
    store.log(attempt).parent.rmdir()
    store.log(attempt).parent.write_text("a file where the folder should be")
    second = store.submit(spec(command=["works"]))
    dispatcher.step()
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

    Dispatcher(store, ray, report).run(0.05, drain=True, stop=stop)
    assert store.job(job.id).state == "succeeded"
    assert [text for text, _ in reported] == [
        "no Ray job server answers; trying again",
        "job 1 starts (attempt 1)",
        "Ray and the queue's database are available again",
        "job 1 succeeded: exit 0",
    ]
    assert reported[1][1] == "attempt 1 is starting"


def test_a_stop_leaves_jobs_running(store: Store):
    store.submit(spec(command=["works"]))
    stop = threading.Event()
    ray = FakeRay({"works": [0]}, runs=10**9)
    Dispatcher(store, ray, lambda text: stop.set()).run(0.01, drain=False, stop=stop)
    assert [job.state for job in store.jobs()] == ["running"]
    assert ray.stopped == []


def test_one_dispatcher_a_queue(store: Store):
    with (
        dispatcher_lock(store),
        pytest.raises(InputError, match="another dispatcher serves the queue"),
        dispatcher_lock(store),
    ):
        pass
    with dispatcher_lock(store):
        pass
