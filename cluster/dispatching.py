"""`python -m cluster dispatch`: a dispatcher while it leads, and one in waiting while another does."""

import argparse
import signal
import threading
import time

from cluster import heartbeats
from cluster.admission import Policy
from cluster.dispatcher import Dispatcher, Patience
from cluster.errors import DeposedError, InputError, RayUnavailableError
from cluster.ray_jobs import RayJobs
from cluster.request import parse_duration
from cluster.store import Store


def dispatch(options: argparse.Namespace, url: str) -> None:
    """Dispatch the queue's jobs until interrupted or, with --drain, until none is left."""
    stop = threading.Event()

    def stop_once(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once, which is safe too

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_once)
    policy = Policy(
        max_attempts=options.max_jobs,
        min_run_s=parse_duration(options.min_runtime, "--min-runtime"),
        max_preemptions=options.max_preemptions,
        leave_s=parse_duration(options.grace, "--grace"),
    )
    store = Store.open(url, files=options.files)
    try:
        jobs = RayJobs(options.address)
    except RayUnavailableError as error:
        raise InputError(f"{error}; allowed: --address or RAY_API_SERVER_ADDRESS of a running cluster") from None
    while True:
        with store.database.lead(print_line, stop.wait) as lead:
            if lead is None:
                break
            try:
                store.lead = lead
                _lead(options, store, jobs, policy, stop)
                break
            except DeposedError as error:
                print_line(str(error))
    print_line("the queue is empty" if not stop.is_set() else "stopped; running jobs continue")


def _lead(options: argparse.Namespace, store: Store, jobs: RayJobs, policy: Policy, stop: threading.Event) -> None:
    """Dispatch; DeposedError if another does."""
    store.bind(jobs.address, options.moved)
    patience = Patience(parse_duration(options.start_deadline, "--start-deadline"), policy.leave_s)
    tokens = heartbeats.Tokens(store.anchor)
    host = options.listen or heartbeats.reachable_host(jobs.address)
    with heartbeats.HeartbeatServer(tokens, host) as listener:
        listener.begin(attempt.submission_id for attempt in store.attempts())
        print_line(f"dispatching {store.database.name} to Ray at {jobs.address}; heartbeats at {listener.url}")
        Dispatcher(store, jobs, print_line, listener, policy, patience).run(options.poll, options.drain, stop)


def print_line(text: str) -> None:
    """Print a line with the date and time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)
