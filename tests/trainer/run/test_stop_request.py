"""The stop sign: seen soon, only by the attempt that it names, whatever the file looks like on the way."""

import time

import pytest

from trainer.run.stop_request import StopSign, put_up, take_down


@pytest.fixture
def watched(tmp_path):
    sign = StopSign(tmp_path / "preempt.json", "attempt-2")
    yield sign, tmp_path / "preempt.json"
    sign.close()


def seen(sign: StopSign, within: float) -> bool:
    deadline = time.monotonic() + within
    while sign.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return sign.reason is not None


def test_the_attempt_that_is_named_sees_the_reason(watched):
    sign, file = watched
    assert sign.reason is None
    put_up(file, "attempt-2", "SIGTERM")
    assert seen(sign, 10)
    assert sign.reason == "SIGTERM"


@pytest.mark.parametrize("text", ["", "{", "[]", '"attempt-2"', '{"attempt": "attempt-1", "reason": "old"}'])
def test_another_attempts_sign_or_a_broken_file_stops_nobody(watched, text):
    sign, file = watched
    file.write_text(text)
    assert not seen(sign, 0.5)
    put_up(file, "attempt-2", "now")
    assert seen(sign, 10)


def test_only_ones_own_sign_is_taken_down(tmp_path):
    file = tmp_path / "preempt.json"
    take_down(file, "mine")
    put_up(file, "attempt-2", "theirs")
    take_down(file, "mine")
    assert file.exists()
    take_down(file, "theirs")
    assert not file.exists()
