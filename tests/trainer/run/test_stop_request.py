"""The stop request: seen soon, only by the attempt that it names, whatever the file looks like on the way."""

import time

import pytest

from trainer.run.stop_request import StopRequest, clear_stop, request_stop


@pytest.fixture
def acknowledged():
    return list[str]()


@pytest.fixture
def watched(tmp_path, acknowledged):
    request = StopRequest(tmp_path / "preempt.json", "attempt-2", acknowledged.append)
    yield request, tmp_path / "preempt.json"
    request.close()


def seen(request: StopRequest, within: float) -> bool:
    deadline = time.monotonic() + within
    while request.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return request.reason is not None


def test_the_attempt_that_is_named_sees_the_reason_and_acknowledges_it_once(watched, acknowledged):
    request, file = watched
    assert request.reason is None
    request_stop(file, "attempt-2", "SIGTERM")
    assert seen(request, 10)
    assert request.reason == "SIGTERM"
    request.close()
    assert acknowledged == ["SIGTERM"]


@pytest.mark.parametrize("text", ["", "{", "[]", '"attempt-2"', '{"attempt": "attempt-1", "reason": "old"}'])
def test_another_attempts_sign_or_a_broken_file_stops_nobody(watched, text, acknowledged):
    request, file = watched
    file.write_text(text)
    assert not seen(request, 0.5)
    assert not acknowledged
    request_stop(file, "attempt-2", "now")
    assert seen(request, 10)


def test_only_ones_own_sign_is_taken_down(tmp_path):
    file = tmp_path / "preempt.json"
    clear_stop(file, "mine")
    request_stop(file, "attempt-2", "theirs")
    clear_stop(file, "mine")
    assert file.exists()
    clear_stop(file, "theirs")
    assert not file.exists()
