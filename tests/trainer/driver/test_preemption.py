"""How long workers are waited for once the driver is to stop; heartbeats to a real HTTP server on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.driver.heartbeat import QUEUE_URL_VARIABLE, TOKEN_FILE_VARIABLE, Heartbeat, queue_url
from trainer.driver.parts import PREEMPTED_DEADLINE_S
from trainer.driver.preemption import ACKNOWLEDGE_S, SHUTDOWN_S, CheckpointFirst
from trainer.driver.progress import POLL_SECONDS, PREPARING, STARTING_WORKERS
from trainer.driver.run import VERIFY_DEADLINE_S
from trainer.errors import InputError
from trainer.run.journal import Acknowledged, CheckpointSaved, Journal, Metrics, Started, Stopped
from trainer.run.paths import RunPaths
from trainer.runtime.stop import Stop

CONFIG = RunConfig(run=RunSettings(name="mine"))


@pytest.fixture
def paths(tmp_path):
    paths = RunPaths(tmp_path)
    paths.attempt.write_text("attempt-7")
    return paths


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Training:
    """A driver that trains: its journal, the request to it, and what it asks in every turn."""

    paths: RunPaths
    clock: Clock = field(default_factory=Clock)
    stop: Stop = field(default_factory=Stop)
    printed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = Journal(self.paths.journal)
        self.journal.append(Started(step=0, steps=9, world_size=1))  # of an earlier attempt
        self.may_leave = CheckpointFirst(
            self.paths, self.journal, self.stop, self.printed.append, grace_s=60, clock=self.clock
        )

    def leaves_after(self, seconds: float, step: float = 0.25) -> bool:
        """Whether it may not be left for as long, and may be then."""
        for _ in range(round(seconds / step)):
            if self.may_leave():
                return False
            self.clock.now += step
        return self.may_leave()


@pytest.fixture
def training(paths):
    return Training(paths)


def begin(training: Training) -> None:
    training.journal.append(Started(step=0, steps=9, world_size=1))


def test_workers_that_have_not_begun_are_not_waited_for(training):
    training.stop.ask("SIGTERM")
    assert training.may_leave()
    assert not training.paths.preempt.exists()


def test_workers_are_asked_by_the_attempt_they_belong_to(training):
    begin(training)
    training.stop.ask("SIGTERM")
    assert not training.may_leave()
    assert json.loads(training.paths.preempt.read_text()) == {"attempt": "attempt-7", "reason": "SIGTERM"}
    assert training.printed == ["stopping (SIGTERM): the workers write a checkpoint"]


def test_workers_that_do_not_acknowledge_are_gone(training):
    """One of them was lost, say, and Ray Train waits for room: with no checkpoint to come, 10 s are enough."""
    begin(training)
    training.stop.ask("SIGTERM")
    assert training.leaves_after(ACKNOWLEDGE_S)
    assert ACKNOWLEDGE_S + PREEMPTED_DEADLINE_S + VERIFY_DEADLINE_S + POLL_SECONDS < 10


def test_workers_that_have_acknowledged_get_their_grace(training):
    begin(training)
    training.stop.ask("SIGTERM")
    assert not training.may_leave()
    training.clock.now += ACKNOWLEDGE_S - 1
    training.journal.append(Acknowledged(text="SIGTERM"))
    assert training.leaves_after(60)


def test_workers_that_already_write_a_checkpoint_for_a_resize_get_their_grace(training):
    begin(training)
    training.journal.append(Acknowledged(text="going on with 3 workers"))
    training.stop.ask("SIGTERM")
    assert training.leaves_after(60)


def test_workers_that_have_just_stopped_for_a_resize_are_not_waited_for(training):
    begin(training)
    training.journal.append(Stopped(step=5, text="going on with 3 workers"))
    training.stop.ask("SIGTERM")
    assert training.may_leave()


def test_a_full_disk_takes_no_request_and_no_checkpoint(training, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.driver.preemption.request_stop", full)
    begin(training)
    training.stop.ask("SIGTERM")
    assert training.may_leave()


def test_once_the_checkpoint_is_there_only_ray_is_waited_for(training):
    begin(training)
    training.stop.ask("SIGTERM")
    assert not training.may_leave()
    training.journal.append(Acknowledged(text="SIGTERM"))
    assert not training.may_leave()
    training.clock.now += 30
    training.journal.append(Stopped(step=5, text="SIGTERM"))
    assert training.leaves_after(SHUTDOWN_S)


@contextmanager
def queue(
    answers: list[tuple[int, bytes]], tokens: list[str | None] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers in turn, the last one for ever; its URL, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if tokens is not None:
                tokens.append(self.headers["Authorization"])
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[min(len(sent), len(answers)) - 1]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/heartbeat", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_heartbeat_tells_how_far_the_run_is_and_passes_the_reason_on(paths, monkeypatch):
    monkeypatch.setenv("DUALVIEW_JOB", "12")
    journal, asked, warned = Journal(paths.journal), list[str](), list[str]()
    journal.append(CheckpointSaved(step=2, stalled=0.0, seconds=0.0))
    journal.append(Metrics(step=3, values={"loss": 1.0}))
    doing = iter([PREPARING, STARTING_WORKERS, "training"])
    with queue([(200, b"{}"), (200, b"{}"), (200, b'{"preempt": true, "reason": "a job of priority 9"}')]) as (
        url,
        sent,
    ):
        Heartbeat(url, CONFIG, journal, asked.append, warned.append, lambda: next(doing), interval_s=0.05)
        assert until(lambda: bool(asked))
    assert asked == ["a job of priority 9"]
    assert not warned
    same = {"job": "12", "run": "mine", "step": 3, "steps": 1500, "saved_step": 2}
    assert sent == [
        {**same, "state": "starting", "doing": "preparing"},
        {**same, "state": "starting", "doing": "starting workers"},
        {**same, "state": "running", "doing": "training"},
    ]


@pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>"), (200, b"[]"), (404, b'{"preempt": true}')])
def test_what_is_no_answer_is_told_once_and_stops_nothing(paths, answer):
    asked, warned = list[str](), list[str]()
    with queue([answer]) as (url, sent):
        heartbeat = Heartbeat(url, CONFIG, Journal(paths.journal), asked.append, warned.append, interval_s=0.02)
        assert until(lambda: len(sent) > 3)
        heartbeat.close()
    assert len(warned) == 1
    assert not asked


@pytest.mark.parametrize("answer", [b"{}", b'{"preempt": false}', b'{"preempt": "yes"}', b'{"preempt": 1}'])
def test_only_true_is_a_request(paths, answer):
    asked, warned = list[str](), list[str]()
    with queue([(200, answer)]) as (url, sent):
        heartbeat = Heartbeat(url, CONFIG, Journal(paths.journal), asked.append, warned.append, interval_s=0.02)
        assert until(lambda: len(sent) > 3)
        heartbeat.close()
    assert not asked
    assert not warned


def test_the_queues_token_goes_along_and_one_that_is_gone_is_told_once(paths, monkeypatch, tmp_path):
    asked, warned, token = list[str](), list[str](), tmp_path / "token"
    token.write_text("one.abc\n")
    monkeypatch.setenv(TOKEN_FILE_VARIABLE, str(token))
    with queue([(200, b"{}")], (headers := [])) as (url, _):
        heartbeat = Heartbeat(url, CONFIG, Journal(paths.journal), asked.append, warned.append, interval_s=0.02)
        assert until(lambda: len(headers) > 1)
        assert set(headers) == {"Bearer one.abc"}
        token.unlink()
        assert until(lambda: bool(warned))
        heartbeat.close()
    assert len(warned) == 1
    assert "the run goes on" in warned[0]
    assert not asked


def test_heartbeats_follow_the_dispatcher_that_leads(paths, monkeypatch, tmp_path):
    """To the address in the file, and to the first one where nobody answers there."""
    token = tmp_path / "token"
    token.write_text("one.abc")
    monkeypatch.setenv(TOKEN_FILE_VARIABLE, str(token))
    warned = list[str]()
    with queue([(200, b"{}")]) as (first, at_first), queue([(200, b"{}")]) as (second, at_second):
        (tmp_path / "token.url").write_text(second)
        heartbeat = Heartbeat(first, CONFIG, Journal(paths.journal), warned.append, warned.append, interval_s=0.02)
        assert until(lambda: len(at_second) > 2)
        assert not at_first
        (tmp_path / "token.url").write_text("http://127.0.0.1:1/gone")
        assert until(lambda: len(at_first) > 2)
        (tmp_path / "token.url").write_text("nonsense")
        assert until(lambda: len(at_first) > 5)
        count = len(at_first)
        heartbeat.close()
        assert len(at_first) > count  # the last one, though one was not answered before
    assert len(warned) == 1
    assert "http://127.0.0.1:1/gone" in warned[0]


def test_a_queue_that_is_not_there_is_told_once(paths):
    with queue([(200, b"{}")]) as (url, _):
        pass
    warned = list[str]()
    heartbeat = Heartbeat(url, CONFIG, Journal(paths.journal), warned.append, warned.append, interval_s=0.02)
    assert until(lambda: bool(warned))
    heartbeat.close()
    assert "the run goes on" in warned[0]


@pytest.mark.parametrize("url", ["queue:8000", "ftp://queue/", "http://", "http://queue:port/", "http://queue:0/"])
def test_a_malformed_url_is_bad_input(monkeypatch, url):
    monkeypatch.setenv(QUEUE_URL_VARIABLE, url)
    with pytest.raises(InputError, match=QUEUE_URL_VARIABLE):
        queue_url()


@pytest.mark.parametrize("url", [None, ""])
def test_without_a_url_there_are_no_heartbeats(monkeypatch, url):
    monkeypatch.delenv(QUEUE_URL_VARIABLE, raising=False)
    if url is not None:
        monkeypatch.setenv(QUEUE_URL_VARIABLE, url)
    assert queue_url() is None
