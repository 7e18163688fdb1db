"""`python -m cluster logs`: the output of a job, kept or live, over all its attempts."""

import asyncio
import sys
import time

from cluster.errors import RayUnavailableError
from cluster.ray_jobs import RayJobs
from cluster.spec import ENDED
from cluster.store import Store
from cluster.tables import Attempt

POLL_S = 0.5


def print_logs(store: Store, job_id: int, follow: bool, address: str | None = None) -> None:
    """Print what a job has written; with `follow`, wait for it to start and stay until it ends.

    `address` is that of Ray's dashboard, for the output of an attempt that runs.

    Raises:
        cluster.errors.InputError: no such job.
        cluster.errors.RayUnavailableError: without `follow`: a running attempt's output is with Ray, which has none.
    """
    printed: set[int] = set()
    said = ""
    while True:
        job = store.job(job_id)
        for attempt in store.attempts(job_id):
            if attempt.number not in printed and (attempt.confirmed or attempt.ended_at is not None):
                _begin(store, attempt, follow, address)
                printed.add(attempt.number)
        if job.state in ENDED or not follow:
            break
        if job.state == "queued" and job.reason != said:
            said = job.reason
            print(f"job {job_id} waits: {said}", file=sys.stderr)
        time.sleep(POLL_S)
    if not printed:
        print(f"job {job_id} {job.state}: {job.reason}", file=sys.stderr)


def _begin(store: Store, attempt: Attempt, follow: bool, address: str | None) -> None:
    if attempt.number > 1:
        print(f"--- attempt {attempt.number} ---", file=sys.stderr)
    if follow and attempt.ended_at is None:
        _follow(store, attempt, address)
    else:
        _print(store, attempt, address)


def _print(store: Store, attempt: Attempt, address: str | None, begin: int = 0) -> None:
    """An attempt's output, from the character `begin` on."""
    kept = store.log(attempt)
    if attempt.ended_at is None:
        text = RayJobs(address).log(attempt.submission_id)
    elif kept.exists():
        text = kept.read_bytes().decode(errors="replace")
    else:
        text = ""
        print(f"(no output: {attempt.reason})", file=sys.stderr)
    print(text[begin:], end="", flush=True)


def _follow(store: Store, attempt: Attempt, address: str | None) -> None:
    """An attempt's output as it comes; what a broken connection leaves out is taken from the kept log at the end."""
    seen = 0

    async def copy() -> None:
        nonlocal seen
        position = 0
        async for text in RayJobs(address).follow(attempt.submission_id):
            print(text[max(0, seen - position) :], end="", flush=True)
            position += len(text)
            seen = max(seen, position)

    while attempt.ended_at is None:
        try:
            asyncio.run(copy())
        except RayUnavailableError:
            time.sleep(POLL_S)
        attempt = next(found for found in store.attempts(attempt.job_id) if found.id == attempt.id)
        time.sleep(POLL_S)
    _print(store, attempt, address, seen)
