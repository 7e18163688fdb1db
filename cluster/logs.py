"""`python -m cluster logs`: the output of all attempts of a job, from the saved logs or live from Ray."""

import asyncio
import codecs
import re
import sys
import time
from collections.abc import Iterable
from contextlib import aclosing, suppress

from cluster.command import printable, visible
from cluster.database.tables import Attempt
from cluster.errors import InputError, RayUnavailableError
from cluster.files import log_name
from cluster.ray_jobs import RayJobs
from cluster.spec import END_STATES
from cluster.store import Store

POLL_S = 0.5
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
        _print_so_far(store, attempt, address)


def _print_so_far(
    store: Store, attempt: Attempt, address: str | None, skip: int = 0, decoder: codecs.IncrementalDecoder | None = None
) -> None:
    """Print an attempt's output up to now, without its first `skip` bytes, which `decoder` has had."""
    if attempt.ended_at is None:
        parts: Iterable[bytes] = RayJobs(address).log(attempt.submission_id)
    elif store.files.exists(name := log_name(attempt.submission_id)):
        parts = store.files.read(name)
    else:
        parts = ()
        print(f"(no output: {printable(attempt.reason)})", file=sys.stderr)
    decoder = decoder or _decoder()
    for part in parts:
        _write(decoder.decode(part[skip:]))
        skip = max(0, skip - len(part))
    _write(decoder.decode(b"", final=True))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _write(text: str) -> None:
    """Write output as it is, but to a terminal without what a terminal would obey beyond ends of lines and colours."""
    if sys.stdout.isatty():
        text = "".join(part if COLOUR.fullmatch(part) else visible(part, "\n\r\t") for part in COLOUR.split(text))
    print(text, end="", flush=True)


def _follow(store: Store, attempt: Attempt, address: str | None) -> None:
    """Print an attempt's output as it is written; what a lost connection left out comes from the saved log."""
    printed, decoder = 0, _decoder()  # bytes

    def now() -> Attempt:
        return next(each for each in store.attempts(attempt.job_id) if each.id == attempt.id)

    async def copy() -> None:
        nonlocal printed
        position = 0
        async with aclosing(RayJobs(address).follow(attempt.submission_id)) as parts:
            async for part in parts:
                if not part and now().ended_at is not None:
                    return
                _write(decoder.decode(part[max(0, printed - position) :]))
                position += len(part)
                printed = max(printed, position)

    while now().ended_at is None:
        with suppress(RayUnavailableError):
            asyncio.run(copy())
        time.sleep(POLL_S)
    _print_so_far(store, now(), address, printed, decoder)
