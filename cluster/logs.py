"""`python -m cluster logs`: the output of all attempts of a job, from the saved logs or live from Ray."""

import codecs
import re
import sys
import time
from collections.abc import Iterable

from cluster.command import printable, visible
from cluster.database.tables import Attempt
from cluster.errors import InputError, RayUnavailableError
from cluster.files import log_name
from cluster.ray_jobs import RayJobs
from cluster.spec import END_STATES
from cluster.store import Store

POLL_S = 0.5
END_BYTES = 2**13
REST = 10.0  # times what it took to read an output, before it is read again
COLOUR = re.compile("(\x1b\\[[0-79;]*m)")  # without 8, which hides


def print_logs(store: Store, job_id: int, follow: bool, address: str | None = None, number: int | None = None) -> None:
    """Print the output of a job; with `follow`, wait for it to start and print until it ends.

    Args:
        store: the queue.
        job_id: the job.
        follow: whether to wait.
        address: Ray's dashboard, which has the output of a running attempt; None finds it as `ray job submit` does.
        number: print this attempt alone; None prints all.

    Raises:
        cluster.errors.InputError: no such job, or no such attempt.
        cluster.errors.RayUnavailableError: without `follow`, Ray cannot give a running attempt's output.
    """
    printed: set[int] = set()
    reported_reason = ""
    while True:
        job = store.job(job_id)
        attempts = [each for each in store.attempts(job_id) if number in (None, each.number)]
        if number is not None and not attempts and not follow:
            raise InputError(f"job {job_id} has no attempt {number}; allowed: 1 to {len(store.attempts(job_id))}")
        for attempt in attempts:
            if attempt.number not in printed and (attempt.confirmed or attempt.ended_at is not None):
                _print_attempt(store, attempt, follow, address)
                printed.add(attempt.number)
        chosen_ended = number is not None and any(attempt.ended_at is not None for attempt in attempts)
        if job.state in END_STATES or chosen_ended or not follow:
            break
        if job.state == "queued" and job.reason != reported_reason:
            reported_reason = job.reason
            print(f"job {job_id} waits: {printable(reported_reason)}", file=sys.stderr)
        time.sleep(POLL_S)
    if not printed:
        print(f"job {job_id} {job.state}: {printable(job.reason)}", file=sys.stderr)


def _print_attempt(store: Store, attempt: Attempt, follow: bool, address: str | None) -> None:
    if attempt.number > 1:
        print(f"--- attempt {attempt.number} ---", file=sys.stderr)
    if follow and attempt.ended_at is None:
        _follow(store, attempt, address)
    else:
        _print_so_far(store, attempt, address, _Output())


class _Output:
    """An output of which all that there is so far is given again and again: it prints what it has not printed."""

    def __init__(self) -> None:
        self._printed, self._decoder = 0, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def print(self, parts: Iterable[bytes], is_all: bool = False) -> None:
        position, end = 0, b""
        for part in parts:
            _write(self._decoder.decode(part[max(0, self._printed - position) :]))
            position += len(part)
            self._printed = max(self._printed, position)
            end = (end + part[-END_BYTES:])[-END_BYTES:]
        if is_all:
            _write(self._decoder.decode(b"", final=True))
            if position < self._printed:
                print("\n(not all of the output is kept; this is the end of what is)", file=sys.stderr)
                _write(end.decode(errors="replace"))


def _print_so_far(store: Store, attempt: Attempt, address: str | None, output: _Output) -> None:
    if attempt.ended_at is None:
        parts: Iterable[bytes] = RayJobs(address).log(attempt.submission_id)
    elif store.files.exists(name := log_name(attempt.submission_id)):
        parts = store.files.read(name)
    else:
        parts = ()
        print(f"(no output: {printable(attempt.reason)})", file=sys.stderr)
    output.print(parts, is_all=True)


def _write(text: str) -> None:
    """Write output as it is, but to a terminal without what a terminal would obey beyond ends of lines and colours."""
    if sys.stdout.isatty():
        text = "".join(part if COLOUR.fullmatch(part) else visible(part, "\n\r\t") for part in COLOUR.split(text))
    print(text, end="", flush=True)


def _follow(store: Store, attempt: Attempt, address: str | None) -> None:
    """Print an attempt's output as it is written; what a lost connection left out comes from the saved log.

    The output is read again and again, seldom where that takes long. Ray can follow a file too, but does not notice
    that nobody listens any more: each follower would keep one of the hundred places of its state API, which tells the
    dispatcher of the nodes, for as long as the head lives.
    """
    output, server, next_at = _Output(), None, 0.0
    while (attempt := _as_it_is(store, attempt)).ended_at is None:
        if (began := time.monotonic()) >= next_at:
            try:
                server = server or RayJobs(address)
                output.print(server.log(attempt.submission_id))
            except RayUnavailableError:
                server = None
            next_at = time.monotonic() + REST * (time.monotonic() - began)
        time.sleep(POLL_S)
    _print_so_far(store, attempt, address, output)


def _as_it_is(store: Store, attempt: Attempt) -> Attempt:
    return next(each for each in store.attempts(attempt.job_id) if each.id == attempt.id)
