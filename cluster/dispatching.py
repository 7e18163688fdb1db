"""`python -m cluster dispatch`: a dispatcher while it leads, and one in waiting while another does."""

import argparse
import signal
import threading
import time

from cluster import heartbeats
from cluster.admission import Policy
from cluster.command import printable
from cluster.database.lead import Lead
from cluster.dispatcher import Dispatcher, Patience
from cluster.errors import DeposedError, InputError, RayUnavailableError, StoreUnavailableError
from cluster.ray_jobs import RayJobs
from cluster.request import parse_duration
from cluster.spec import Ending
from cluster.store import Store

AGAIN_S = 5.0  # before the lead is taken again that something else than another dispatcher has ended


def dispatch(options: argparse.Namespace, url: str) -> None:
    """Dispatch the queue's jobs until interrupted or, with --drain, until none is left."""
    stop = threading.Event()

    def stop_once(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once, which is safe too

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_once)
    store = Store.open(url, files=options.files)
    try:
        jobs = RayJobs(options.address)
    except RayUnavailableError as error:
        raise InputError(f"{error}; allowed: --address or RAY_API_SERVER_ADDRESS of a running cluster") from None
    host = options.listen or heartbeats.reachable_host(jobs.address)
    turn = _Turn(options, store, jobs, heartbeats.Tokens(store.anchor), host)
    heartbeats.check_host(host)
    ended = False
    while not (ended or stop.is_set()):
        with store.database.lead(print_line, stop.wait) as lead:
            if lead is not None:
                ended = turn.take(lead, stop)
    print_line("the queue is empty" if not stop.is_set() else "stopped; running jobs continue")


class _Turn:
    """What a dispatcher does each time that it leads."""

    def __init__(
        self, options: argparse.Namespace, store: Store, jobs: RayJobs, tokens: heartbeats.Tokens, host: str
    ) -> None:
        self._options, self._store, self._jobs, self._tokens, self._host = options, store, jobs, tokens, host
        self._policy = Policy(
            max_attempts=options.max_jobs,
            min_run_s=parse_duration(options.min_runtime, "--min-runtime"),
            max_preemptions=options.max_preemptions,
            leave_s=parse_duration(options.grace, "--grace"),
        )
        self._patience = Patience(parse_duration(options.start_deadline, "--start-deadline"), self._policy.leave_s)
        self._has_led = False

    def take(self, lead: Lead, stop: threading.Event) -> bool:
        """Dispatch; whether that is over, or to be tried again when nobody leads.

        Raises:
            InputError: this is not the cluster of the open attempts, the first time.
        """
        self._store.lead = lead
        try:
            self._store.bind(self._jobs.address, self._options.moved, self._knows)
            self._has_led = True
            with heartbeats.HeartbeatServer(self._tokens, self._host) as listener:
                there = f"Ray at {self._jobs.address}; heartbeats at {listener.url}"
                print_line(f"dispatching {self._store.database.name} to {there}")
                dispatcher = Dispatcher(self._store, self._jobs, print_line, listener, self._policy, self._patience)
                dispatcher.run(self._options.poll, self._options.drain, stop)
            return True
        except DeposedError as error:
            print_line(str(error))
        except (StoreUnavailableError, RayUnavailableError, OSError) as error:
            print_line(f"{error}; trying again")
            stop.wait(AGAIN_S)
        except InputError as error:
            if self._store.database.file is not None or not self._has_led:
                raise
            print_line(f"{error}; trying again")
            stop.wait(AGAIN_S)
        return False

    def _knows(self, submission_id: str) -> bool:
        found = self._jobs.look(submission_id)
        return not (isinstance(found, Ending) and found.status == "lost")


def print_line(text: str) -> None:
    """Print a line with the date and time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(text)}", flush=True)
