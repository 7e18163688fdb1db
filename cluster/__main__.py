"""`python -m cluster`: submit jobs to the queue, inspect them, and dispatch them to Ray."""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.command import run_command
from cluster.errors import InputError, RayUnavailableError

EPILOG = """\
examples:
  python -m cluster submit -- python -m trainer --config configs/digits.yaml
  python -m cluster submit --priority 10 -- python -m tuning run --config configs/sweep-digits.yaml
  python -m cluster submit --resources 2*CPU=1 -- python my_script.py
  python -m cluster dispatch                    # on one machine that can reach Ray; leave it running
  python -m cluster list                        # what is running, what is waiting, and why
  python -m cluster logs -f 3
  ray job submit --working-dir . -- python -m cluster submit -- python -m trainer --config configs/digits.yaml

The queue is a SQLite file with code snapshots and logs beside it. Its location is --queue, or else DUALVIEW_QUEUE,
$DUALVIEW_STORAGE/queue/queue.db or ~/dualview/queue/queue.db. Jobs run one at a time: the highest priority first, and
within a priority the oldest first. A job that exits with 75 (preempted after a checkpoint) is queued again and resumes.

exit codes: 0 done; 2 bad input; 1 anything else
"""
ADDRESS_HELP = "Ray's dashboard, e.g. http://127.0.0.1:8265 (default: the one `ray job submit` finds)"
MAX_ENDED_SHOWN = 10


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m cluster",
        description="A durable queue of jobs for one Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--queue", metavar="URL", help="the queue's database: sqlite:////absolute/path/queue.db (default: see below)"
    )
    commands = result.add_subparsers(dest="action", required=True, metavar="COMMAND")
    _add_submit(commands.add_parser("submit", help="add a command, with a snapshot of its code, to the queue"))
    listing = commands.add_parser("list", help="list waiting and running jobs, and the last ones that ended")
    listing.add_argument("--all", action="store_true", help="include every job that has ended")
    listing.add_argument("--json", action="store_true", help="print JSON")
    shown = commands.add_parser("show", help="show one job with its attempts and its history")
    shown.add_argument("job", type=int, metavar="JOB")
    shown.add_argument("--json", action="store_true", help="print JSON")
    logs = commands.add_parser("logs", help="print the output of a job")
    logs.add_argument("job", type=int, metavar="JOB")
    logs.add_argument("--address", metavar="URL", help=ADDRESS_HELP)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for the job to start and print until it ends")
    cancelled = commands.add_parser(
        "cancel", help="remove a waiting job, or stop a running one (SIGTERM, later SIGKILL)"
    )
    cancelled.add_argument("job", type=int, metavar="JOB")
    dispatch = commands.add_parser(
        "dispatch", help="run the queue's jobs on Ray until interrupted; running jobs go on without it"
    )
    dispatch.add_argument("--address", metavar="URL", help=ADDRESS_HELP)
    dispatch.add_argument(
        "--moved", action="store_true", help="the cluster on which earlier attempts were started no longer exists"
    )
    dispatch.add_argument("--drain", action="store_true", help="exit once no job is waiting or running")
    dispatch.add_argument(
        "--poll", type=_seconds, default=1.0, metavar="SECONDS", help="interval between passes (default: 1)"
    )
    return result


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--name", help="a name to show (default: that of the run, the sweep or the command)")
    submit.add_argument("--priority", type=int, default=0, help="higher runs first (default: 0)")
    submit.add_argument(
        "--working-dir", type=Path, default=Path("."), metavar="DIR", help="folder of code to snapshot (default: .)"
    )
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="set an environment variable; repeatable"
    )
    submit.add_argument(
        "--resources", metavar="GANG",
        help="resources to ask Ray for, e.g. 2*CPU=1,GPU=1 (default: as the trainer or the sweep reports; else CPU=1)",
    )  # fmt: skip
    submit.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command to run")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 0.05 to 3600 seconds")
    return value


def queue_url(given: str | None) -> str:
    """The URL of the queue's database: `given`, else the environment's, else the default in the storage folder."""
    if given or os.environ.get("DUALVIEW_QUEUE"):
        return given or os.environ["DUALVIEW_QUEUE"]
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    return f"sqlite:///{quote(str(Path(storage, 'queue', 'queue.db')))}"


def submit(options: argparse.Namespace) -> None:
    """Queue a job; all input is validated before anything is written."""
    from cluster import request, snapshot

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not any(argument.strip() for argument in command):
        raise InputError("no command; allowed: python -m cluster submit -- COMMAND …")
    folder = options.working_dir.absolute()
    contents = snapshot.list_files(folder)
    variables = request.job_environment(options.env, snapshot.git_commit(folder))
    gangs = [request.parse_resources(options.resources)] if options.resources else None
    with tempfile.TemporaryDirectory() as scratch:
        archive = snapshot.archive_path(Path(scratch), snapshot.create(folder, contents.names, Path(scratch)))
        description = _dry_run(command, folder, archive, variables)
        _queue(options, command, description, gangs, variables, archive)
    for path, kind in contents.left_out.items():
        print(f"  not in its snapshot: {path} ({kind})")


def _dry_run(command: list[str], folder: Path, archive: Path, variables: dict[str, str]) -> dict[str, Any] | None:
    """What the command says of itself where the job will run: in its unpacked snapshot.

    Raises:
        InputError: it rejects its input; paths that are in the folder and not in the snapshot are named.
    """
    from cluster import request, snapshot

    if not request.describes_itself(command):
        return None
    place = archive.with_suffix("")
    snapshot.unpack(archive, place)
    try:
        return request.describe(command, place, variables)
    except InputError as error:
        words = [*(word.rpartition("=")[2] for word in command), *re.findall(r"'([^']+)'", str(error))]
        missing = next((word for word in words if _is_there(folder, word) and not _is_there(place, word)), None)
        if missing is None:
            raise
        raise InputError(
            f"{error}; {missing} is in {folder}, but git ignores it, so it is not in the job's snapshot: allowed: an "
            "absolute path that the cluster sees, or a file that is not ignored"
        ) from None


def _is_there(folder: Path, word: str) -> bool:
    try:
        return bool(word) and not word.startswith("/") and (folder / word).exists()
    except (OSError, ValueError):
        return False


def _queue(
    options: argparse.Namespace,
    command: list[str],
    description: dict[str, Any] | None,
    gangs: list[list[dict[str, float]]] | None,
    variables: dict[str, str],
    archive: Path,
) -> None:
    from pydantic import ValidationError

    from cluster import request, snapshot
    from cluster.spec import JobSpec
    from cluster.store import Store

    name = options.name or request.job_name(description, command)
    gangs = gangs or (request.gang_alternatives(description) if description else [[{"CPU": 1.0}]])
    fields = {"name": name, "command": command, "priority": options.priority, "environment": variables, "gangs": gangs}
    try:
        spec = JobSpec.model_validate({**fields, "snapshot": archive.stem})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        allowed = problem["msg"].replace("Input should be", "allowed:").replace("String should", "allowed: it should")
        raise InputError(f"{problem['loc'][0]} = {problem['input']!r}: {allowed}") from None
    store = Store.open(queue_url(options.queue))
    snapshot.keep(archive, store.snapshots)
    job = store.submit(spec)
    print(f"job {job.id} queued: {name} (priority {job.priority}); python -m cluster logs -f {job.id}")


def list_jobs(options: argparse.Namespace) -> None:
    """List waiting and running jobs, and the last ones that ended."""
    from cluster import views
    from cluster.dispatcher import has_dispatcher
    from cluster.spec import END_STATES
    from cluster.store import Store

    store = Store.open(queue_url(options.queue), create=False)
    jobs = store.jobs()
    ended = [job.id for job in jobs if job.state in END_STATES]
    hidden: set[int] = set() if options.all else set(ended[:-MAX_ENDED_SHOWN])
    shown = [(job, store.attempts(job.id)) for job in jobs if job.id not in hidden]
    if options.json:
        print(json.dumps([views.job_row(job, attempts) for job, attempts in shown], indent=2))
        return
    if not jobs:
        print("the queue is empty; python -m cluster submit -- COMMAND …")
        return
    views.console().print(views.jobs_table(shown))
    if hidden:
        print(f"and {len(hidden)} more that ended earlier (--all shows them)")
    if len(ended) < len(jobs) and not has_dispatcher(store):
        print("no dispatcher is running on this machine: python -m cluster dispatch")


def show(options: argparse.Namespace) -> None:
    """Show one job, its attempts and its history."""
    from cluster import views
    from cluster.store import Store

    store = Store.open(queue_url(options.queue), create=False)
    job, attempts, events = store.job(options.job), store.attempts(options.job), store.events(options.job)
    if options.json:
        history = [{"at": event.at, "text": event.text} for event in events]
        print(json.dumps({**views.job_row(job, attempts), "events": history}, indent=2))
    else:
        views.show(views.console(), job, attempts, events)


def logs(options: argparse.Namespace) -> None:
    """Print a job's output."""
    from cluster.logs import print_logs
    from cluster.store import Store

    print_logs(Store.open(queue_url(options.queue), create=False), options.job, options.follow, options.address)


def cancel(options: argparse.Namespace) -> None:
    """Cancel a job that waits or runs."""
    from cluster.store import Store

    job = Store.open(queue_url(options.queue), create=False).cancel(options.job)
    print(f"job {job.id} " + ("is cancelled" if job.state == "cancelled" else "will be stopped by the dispatcher"))


def dispatch(options: argparse.Namespace) -> None:
    """Dispatch the queue's jobs until interrupted or, with --drain, until none is left."""
    from cluster.dispatcher import Dispatcher, dispatcher_lock
    from cluster.ray_jobs import RayJobs
    from cluster.store import Store

    stop = threading.Event()

    def stop_once(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once, which is safe too

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_once)
    store = Store.open(queue_url(options.queue))
    with dispatcher_lock(store):
        try:
            jobs = RayJobs(options.address)
        except RayUnavailableError as error:
            raise InputError(f"{error}; allowed: --address or RAY_API_SERVER_ADDRESS of a running cluster") from None
        store.bind(jobs.address, options.moved)
        print_line(f"dispatching {store.file} to Ray at {jobs.address}")
        Dispatcher(store, jobs, print_line).run(options.poll, options.drain, stop)
        print_line("the queue is empty" if not stop.is_set() else "stopped; running jobs continue")


def print_line(text: str) -> None:
    """Print a line with the date and time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "submit": submit, "list": list_jobs, "show": show, "logs": logs, "cancel": cancel, "dispatch": dispatch,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: ACTIONS[options.action](options))


if __name__ == "__main__":
    sys.exit(main())
