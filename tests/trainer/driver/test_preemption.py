"""SIGTERM at each time of a driver's life, and heartbeats to a real HTTP server on loopback."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.driver import preemption
from trainer.driver.heartbeat import QUEUE_URL_VARIABLE, Heartbeat, queue_url
from trainer.driver.preemption import Preempted, Preemption, listening
from trainer.errors import InputError
from trainer.run.journal import Journal, Metrics, Started
from trainer.run.paths import RunPaths

CONFIG = RunConfig(run=RunSettings(name="mine"))


@pytest.fixture
def paths(tmp_path):
    paths = RunPaths(tmp_path)
    paths.attempt.write_text("attempt-7")
    return paths


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_where_no_worker_trains_it_ends_at_once(paths):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM"), listening(Preemption(paths)):
        terminate()
    assert not paths.preempt.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def trained(paths: RunPaths, work: Callable[[], object], grace_s: float = 60, begun: bool = True) -> None:
    """The time of training, as a driver spends it: workers begin, and `work` is what happens then."""
    journal, asked = Journal(paths.journal), Preemption(paths, grace_s)
    journal.append(Started(step=0, steps=9, world_size=1))  # of an earlier attempt
    with listening(asked), asked.training(journal):
        if begun:
            journal.append(Started(step=0, steps=9, world_size=1))
        work()


def test_workers_that_have_not_begun_are_not_waited_for(paths):
    with pytest.raises(Preempted):
        trained(paths, terminate, begun=False)
    assert not paths.preempt.exists()


def test_workers_are_asked_by_the_attempt_they_belong_to(paths):
    """They write their checkpoint, and training returns."""
    with pytest.raises(Preempted, match="SIGTERM"):
        trained(paths, terminate)
    assert json.loads(paths.preempt.read_text()) == {"attempt": "attempt-7", "reason": "SIGTERM"}


def test_an_error_of_training_is_a_failure_unless_a_request_came_first(paths):
    def lost() -> None:
        raise RuntimeError("a worker's machine is gone")

    with pytest.raises(RuntimeError):
        trained(paths, lost)
    with pytest.raises(Preempted):
        trained(paths, lambda: (terminate(), lost()))


def test_a_second_request_ends_the_wait_for_the_workers(paths):
    with pytest.raises(Preempted):
        trained(paths, lambda: (terminate(), terminate(), pytest.fail("nothing interrupted the wait")))


def test_workers_that_do_not_answer_in_time_are_not_waited_for(paths):
    with pytest.raises(Preempted):
        trained(paths, lambda: (terminate(), until(lambda: False), pytest.fail("nothing did")), grace_s=0.2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_is_lost_in_a_destructor_is_raised_again(paths, monkeypatch):
    monkeypatch.setattr(preemption, "RERAISE_AFTER_S", 0.1)

    class Asked:
        def __del__(self) -> None:
            terminate()

    lost = list[bool]()

    def work() -> None:
        Asked()
        lost.append(True)
        until(lambda: False)

    with pytest.raises(Preempted, match="SIGTERM"), listening(Preemption(paths)):
        work()
    assert lost
    time.sleep(0.3)  # nothing asks again once it was caught: the handler of before would end this process


@contextmanager
def queue(answers: list[tuple[int, bytes]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers in turn, the last one for ever; its URL, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
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
    journal.append(Metrics(step=3, values={"loss": 1.0}))
    with queue([(200, b"{}"), (200, b'{"preempt": true, "reason": "a job of priority 9"}')]) as (url, sent):
        Heartbeat(url, CONFIG, journal, asked.append, warned.append, interval_s=0.05)
        assert until(lambda: bool(asked))
    assert asked == ["a job of priority 9"]
    assert not warned
    assert sent == [{"job": "12", "run": "mine", "step": 3, "steps": 1500}] * 2


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
