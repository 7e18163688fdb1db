"""`python -m cluster logs`: the output of a job, kept or live, over all its attempts."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from cluster.ray_jobs import RayJobs
from cluster.spec import ENDED
from cluster.store import Attempt, Store

POLL_S = 0.5


def print_logs(store: Store, job_id: int, follow: bool, address: str | None = None) -> None:
    """Print what a job has written; with `follow`, wait for it to start and stay until it ends.

    `address` is that of Ray's dashboard, for the output of an attempt that runs.

    Raises:
        cluster.errors.InputError: no such job.
        cluster.errors.RayUnavailableError: a running attempt's output is with Ray, which does not answer.
    """
    printed: set[int] = set()
    said = ""
    while True:
        job = store.job(job_id)
        for attempt in store.attempts(job_id):
            if attempt.number not in printed and (attempt.confirmed or attempt.ended_at is not None):
                _print_attempt(store, attempt, follow, address)
                printed.add(attempt.number)
        if job.state in ENDED or not follow:
            break
        if job.state == "queued" and job.reason != said:
            said = job.reason
            print(f"job {job_id} waits: {said}", file=sys.stderr)
        time.sleep(POLL_S)
    if not printed:
        print(f"job {job_id} {job.state}: {job.reason}", file=sys.stderr)


def _print_attempt(store: Store, attempt: Attempt, follow: bool, address: str | None) -> None:
    if attempt.number > 1:
        print(f"--- attempt {attempt.number} ---", file=sys.stderr)
    kept = store.log(attempt)
    if attempt.ended_at is not None:
        print(kept.read_text() if kept.exists() else "", end="", flush=True)
    elif follow:
        asyncio.run(_copy(RayJobs(address).follow(attempt.submission_id)))
    else:
        print(RayJobs(address).log(attempt.submission_id), end="", flush=True)


async def _copy(lines: AsyncIterator[str]) -> None:
    async for text in lines:
        print(text, end="", flush=True)
