"""Requests to stop: handlers that only count, calls that are left behind, a process that ends whatever it is doing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import pytest

from trainer.runtime.stop import EXIT_CODE, Preempted, Stop, listening


def after(seconds, action, *arguments):
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    return timer


@pytest.fixture
def blocked():
    """What blocks until the test is over."""
    event = threading.Event()
    yield event.wait
    event.set()


def test_a_call_returns_what_the_function_returns_from_another_thread():
    assert Stop().call(threading.get_ident) != threading.get_ident()


def test_all_calls_run_in_one_thread_that_stays():
    """Linux ends the children of a thread with it, if they ask to die with their parent: a local Ray cluster does."""
    stop = Stop()
    assert stop.call(threading.get_native_id) == stop.call(threading.get_native_id)


def test_the_thread_ends_with_the_stop():
    stop = Stop()
    thread = stop.call(threading.current_thread)
    del stop
    thread.join(20)
    assert not thread.is_alive()


def test_a_call_raises_what_the_function_raises():
    with pytest.raises(ZeroDivisionError):
        Stop().call(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        Stop().call(lambda: sys.exit(3))


def test_nothing_is_begun_after_a_request():
    stop, begun = Stop(), list[int]()
    stop.ask("the queue wants the machines back")
    with pytest.raises(Preempted, match="the queue wants the machines back"):
        stop.call(lambda: begun.append(1))
    assert not begun


def test_a_request_leaves_a_blocked_call_behind(blocked):
    stop = Stop()
    after(0.1, stop.ask, "first")
    with pytest.raises(Preempted, match="first"):
        stop.call(blocked)


def test_a_call_that_may_not_be_left_is_waited_for():
    stop, done = Stop(), threading.Event()
    after(0.1, stop.ask, "first")
    after(0.5, done.set)
    assert stop.call(lambda: done.wait(30), may_leave=lambda: False)
    with pytest.raises(Preempted):
        stop.call(done.is_set)


def test_a_second_request_leaves_it_all_the_same(blocked):
    stop = Stop()
    after(0.1, stop.ask, "first")
    after(0.3, stop.ask, "second")
    with pytest.raises(Preempted, match="first"):
        stop.call(blocked, may_leave=lambda: False)
    assert stop.at_once


def test_what_makes_waiting_useless_is_raised_at_once(blocked):
    stop = Stop()
    after(0.1, stop.fail, ConnectionError("the cluster is gone"))
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the cluster is gone"):
            stop.call(blocked, may_leave=lambda: False)


def test_what_fails_after_a_request_was_ended_by_it():
    stop = Stop()

    def lose_the_machines():
        stop.ask("first")
        raise RuntimeError("a worker is gone")

    with pytest.raises(Preempted):
        stop.call(lose_the_machines, may_leave=lambda: False)


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_is_a_request_and_the_handlers_of_before_come_back(number, reason):
    before = signal.getsignal(number)
    with listening() as stop:
        os.kill(os.getpid(), number)
        assert (stop.reason, stop.at_once) == (reason, False)
        os.kill(os.getpid(), number)
        assert (stop.reason, stop.at_once) == (reason, True)
    assert signal.getsignal(number) is before


def test_a_signal_in_a_destructor_or_while_a_lock_is_held_is_not_lost():
    """Where an exception would be swallowed, or a handler that takes the lock would wait for ever."""

    class Asks:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with listening() as stop, threading.Lock():
        Asks()
    assert stop.reason == "SIGTERM"


COMMAND = """
import sys, threading, time
from trainer.runtime.stop import Preempted, exit_process, listening

def work():
    print("begun", flush=True)
    {work}

def main():
    with listening() as stop:
        try:
            stop.call(work, may_leave=lambda: {may_leave})
        except Preempted as reason:
            print("preempted", reason)
            return 75
    return 0

exit_process(main())
"""
BLOCKED = {
    "a lock": "threading.Lock().acquire() and threading.Event().wait()",
    "compiled code": "time.sleep(1000)",
    "a subprocess": "import subprocess; subprocess.run(['sleep', '1000'])",
    "Python that holds the interpreter": "while True: sum(range(10_000))",
}


def command(work, may_leave=True):
    code = textwrap.dedent(COMMAND).format(work=work, may_leave=may_leave)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process, process.stdout


@pytest.mark.parametrize("what", BLOCKED)
def test_a_process_ends_with_its_code_whatever_blocks(what):
    process, output = command(BLOCKED[what])
    began = time.monotonic()
    process.terminate()
    try:
        assert process.wait(30) == EXIT_CODE
        assert output.readline() == "preempted SIGTERM\n"
        assert time.monotonic() - began < 10
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the subprocess, which outlives it
        output.close()


def test_the_second_interrupt_ends_a_process_that_waits():
    process, _ = command("time.sleep(1000)", may_leave=False)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (EXIT_CODE, "preempted Ctrl-C\n")


def test_an_ordinary_end_is_not_held_up_by_what_hangs_at_exit():
    process, _ = command("import atexit; atexit.register(time.sleep, 1000)")
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "")
