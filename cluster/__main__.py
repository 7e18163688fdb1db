"""`python -m cluster`: submit jobs to the queue, look at them, and dispatch them to Ray."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import InputError, RayUnavailableError, StoreUnavailableError

EXAMPLES = """\
examples:
  python -m cluster submit -- python -m trainer --config configs/digits.yaml
  python -m cluster submit --priority 10 -- python -m tuning run --config configs/sweep-digits.yaml
  python -m cluster submit --resources 2*CPU=1 -- python my_script.py
  python -m cluster dispatch                    # on one machine that reaches Ray; leave it running
  python -m cluster list                        # what runs, what waits and why
  python -m cluster logs -f 3
  ray job submit --working-dir . -- python -m cluster submit -- python -m trainer --config configs/digits.yaml

The queue is a SQLite file with the code snapshots and logs beside it: --queue, else DUALVIEW_QUEUE, else
$DUALVIEW_STORAGE/queue/queue.db, else ~/dualview/queue/queue.db. Jobs run one at a time, the highest priority first,
then the oldest. A job that exits with 75 (preempted after a checkpoint) is queued again and goes on.

exit codes: 0 done; 2 bad input; 1 anything else
"""
ADDRESS = "Ray's dashboard, such as http://127.0.0.1:8265; else as `ray job submit` finds it"
LAST_ENDED = 10


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m cluster",
        description="A durable queue of jobs for one Ray cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--queue", metavar="URL", help="the queue's database: sqlite:////absolute/path/queue.db")
    commands = result.add_subparsers(dest="action", required=True, metavar="COMMAND")
    _add_submit(commands.add_parser("submit", help="put a command and a snapshot of its code into the queue"))
    listing = commands.add_parser("list", help="the queue, and what ended last")
    listing.add_argument("--all", action="store_true", help="everything that ever ended, too")
    listing.add_argument("--json", action="store_true", help="as JSON")
    shown = commands.add_parser("show", help="all about one job")
    shown.add_argument("job", type=int, metavar="JOB")
    shown.add_argument("--json", action="store_true", help="as JSON")
    logs = commands.add_parser("logs", help="what a job has written")
    logs.add_argument("job", type=int, metavar="JOB")
    logs.add_argument("--address", metavar="URL", help=ADDRESS)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for the job and stay until it ends")
    cancelled = commands.add_parser("cancel", help="take a job out of the queue, or stop it: SIGTERM, later SIGKILL")
    cancelled.add_argument("job", type=int, metavar="JOB")
    dispatch = commands.add_parser("dispatch", help="run the queue's jobs on Ray until interrupted; jobs outlive it")
    dispatch.add_argument("--address", metavar="URL", help=ADDRESS)
    dispatch.add_argument("--moved", action="store_true", help="what was started on another cluster is gone with it")
    dispatch.add_argument("--drain", action="store_true", help="end when no job waits, for whatever reason, or runs")
    dispatch.add_argument("--poll", type=_seconds, default=1.0, metavar="SECONDS", help="how often to look (1)")
    return result


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--name", help="a name for people; default: the run's, the sweep's or the command's")
    submit.add_argument("--priority", type=int, default=0, help="the higher runs first (0)")
    submit.add_argument("--working-dir", type=Path, default=Path("."), metavar="DIR", help="the code to snapshot (.)")
    submit.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable; repeatable")
    submit.add_argument(
        "--resources", metavar="GANG",
        help="what it asks Ray for, e.g. 2*CPU=1,GPU=1; the trainer and the sweep tell it themselves; else CPU=1",
    )  # fmt: skip
    submit.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 0.05 to 3600 seconds")
    return value


def queue_url(given: str | None) -> str:
    """Where the queue is."""
    if given or os.environ.get("DUALVIEW_QUEUE"):
        return given or os.environ["DUALVIEW_QUEUE"]
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    return f"sqlite:///{storage}/queue/queue.db"


def submit(options: argparse.Namespace) -> None:
    """Everything that can be refused is refused before anything is written."""
    from pydantic import ValidationError

    from cluster import request, snapshot
    from cluster.spec import JobSpec
    from cluster.store import Store

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not any(word.strip() for word in command):
        raise InputError("no command; allowed: python -m cluster submit -- COMMAND …")
    folder = options.working_dir.absolute()
    files = snapshot.files(folder)
    variables = request.environment(options.env, snapshot.git_commit(folder))
    gangs = [request.parse_resources(options.resources)] if options.resources else None
    described = request.describe(command, folder, variables)
    name = options.name or request.name(described, command)
    gangs = gangs or (request.gangs(described) if described else [[{"CPU": 1.0}]])
    fields = {"name": name, "command": command, "priority": options.priority, "environment": variables, "gangs": gangs}
    try:
        JobSpec.model_validate({**fields, "snapshot": "0" * 64})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        allowed = problem["msg"].replace("Input should be", "allowed:").replace("String should", "allowed: it should")
        raise InputError(f"{problem['loc'][0]} = {problem['input']!r}: {allowed}") from None
    store = Store.open(queue_url(options.queue))
    job = store.submit(JobSpec.model_validate({**fields, "snapshot": snapshot.take(folder, files, store.snapshots)}))
    print(f"job {job.id} queued: {name} (priority {job.priority}); python -m cluster logs -f {job.id}")


def list_jobs(options: argparse.Namespace) -> None:
    """Waiting and running jobs, and the last that ended."""
    from cluster import views
    from cluster.dispatcher import is_served
    from cluster.spec import ENDED
    from cluster.store import Store

    store = Store.open(queue_url(options.queue), make=False)
    jobs = store.jobs()
    ended = [job.id for job in jobs if job.state in ENDED]
    hidden: set[int] = set() if options.all else set(ended[:-LAST_ENDED])
    shown = [(job, store.attempts(job.id)) for job in jobs if job.id not in hidden]
    if options.json:
        print(json.dumps([views.job_row(job, attempts) for job, attempts in shown], indent=2))
        return
    if not jobs:
        print("the queue is empty; python -m cluster submit -- COMMAND …")
        return
    views.console().print(views.jobs_table(shown))
    if hidden:
        print(f"and {len(hidden)} that ended earlier: --all")
    if len(ended) < len(jobs) and not is_served(store):
        print("no dispatcher is running on this machine: python -m cluster dispatch")


def show(options: argparse.Namespace) -> None:
    """One job, its attempts and its history."""
    from cluster import views
    from cluster.store import Store

    store = Store.open(queue_url(options.queue), make=False)
    job, attempts, events = store.job(options.job), store.attempts(options.job), store.events(options.job)
    if options.json:
        history = [{"at": event.at, "text": event.text} for event in events]
        print(json.dumps({**views.job_row(job, attempts), "events": history}, indent=2))
    else:
        views.show(views.console(), job, attempts, events)


def logs(options: argparse.Namespace) -> None:
    """A job's output."""
    from cluster.logs import print_logs
    from cluster.store import Store

    print_logs(Store.open(queue_url(options.queue), make=False), options.job, options.follow, options.address)


def cancel(options: argparse.Namespace) -> None:
    """Cancel a job."""
    from cluster.store import Store

    job = Store.open(queue_url(options.queue), make=False).cancel(options.job)
    print(f"job {job.id} " + ("is cancelled" if job.state == "cancelled" else "will be stopped by the dispatcher"))


def dispatch(options: argparse.Namespace) -> None:
    """Serve the queue."""
    from cluster.dispatcher import Dispatcher, only_one
    from cluster.ray_jobs import RayJobs
    from cluster.store import Store

    stop = threading.Event()

    def once(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second time ends it at once, which does no harm either

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, once)
    store = Store.open(queue_url(options.queue))
    with only_one(store):
        try:
            jobs = RayJobs(options.address)
        except RayUnavailableError as error:
            raise InputError(f"{error}; allowed: --address or RAY_API_SERVER_ADDRESS of a running cluster") from None
        store.bind(jobs.address, options.moved)
        say(f"dispatching {store.file} to Ray at {jobs.address}")
        Dispatcher(store, jobs, say).run(options.poll, options.drain, stop)
        say("the queue is empty" if not stop.is_set() else "stopped; running jobs go on")


def say(text: str) -> None:
    """A dated line."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "submit": submit, "list": list_jobs, "show": show, "logs": logs, "cancel": cancel, "dispatch": dispatch,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        ACTIONS[options.action](options)
    except (InputError, RayUnavailableError, StoreUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StoreUnavailableError) else 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
