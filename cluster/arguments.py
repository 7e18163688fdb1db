"""The command line of `python -m cluster`."""

import argparse
import os
from pathlib import Path
from typing import Protocol

from cluster.errors import InputError

EPILOG = """\
examples:
  python -m cluster submit -- python -m trainer --config configs/digits.yaml
  python -m cluster submit --priority 10 -- python -m tuning run --config configs/sweep-digits.yaml
  python -m cluster submit --driver CPU=4,memory=8G -- python prepare.py
  python -m cluster submit --array seeds.yaml -- python -m trainer --config configs/digits.yaml --set seed={seed}
  python -m cluster dispatch                    # on one machine that can reach Ray; leave it running
  python -m cluster list                        # what runs, what waits, and why
  python -m cluster why 3                       # what job 3 waits for
  python -m cluster logs -f 3
  python -m cluster cancel --name 'digits-*' --state queued
  python -m cluster queues set vision --weight 2 --guaranteed 0.25
  ray job submit --working-dir . -- python -m cluster submit -- python -m trainer --config configs/digits.yaml

The queue is a SQLite file with code snapshots and logs beside it, or for several machines a Postgres database. Its
location is --store, or else DUALVIEW_QUEUE, $DUALVIEW_STORAGE/queue/queue.db or ~/dualview/queue/queue.db. A job
starts when all that it asks for is free on the nodes; docs/queue.md explains the order. One that exits with 75
(preempted after a checkpoint) is queued again and goes on.

exit codes: 0 done; 2 bad input; 1 anything else
"""
ADDRESS_HELP = "Ray's dashboard, e.g. http://127.0.0.1:8265 (default: the one `ray job submit` finds)"
STATES = ("queued", "starting", "running", "succeeded", "failed", "cancelled")


class _Commands(Protocol):
    """What `add_subparsers` returns."""

    def add_parser(self, name: str, *, help: str) -> argparse.ArgumentParser:
        """Add a command."""
        ...


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m cluster",
        description="A durable queue of jobs for one Ray cluster, shared by its users fairly.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--store", "--queue", dest="store", metavar="URL",
        help="the queue's database: sqlite:////absolute/path/queue.db or postgresql://user@server/database "
        "(default: see below)",
    )  # fmt: skip
    result.add_argument(
        "--files", metavar="URI", default=os.environ.get("DUALVIEW_QUEUE_FILES") or None,
        help="where a new queue keeps snapshots and logs: an absolute path or s3://bucket/prefix (default: "
        "DUALVIEW_QUEUE_FILES, or beside a SQLite file); it keeps them there for good",
    )  # fmt: skip
    commands = result.add_subparsers(dest="action", required=True, metavar="COMMAND")
    _add_submit(commands.add_parser("submit", help="add a command, with a snapshot of its code, to the queue"))
    _add_reading(commands)
    _add_changing(commands)
    _add_queues(commands)
    _add_dispatch(commands)
    return result


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--name", help="a name to show (default: that of the run, the sweep or the command)")
    submit.add_argument("--queue", dest="team", default="default", metavar="NAME", help="whose share it takes of")
    submit.add_argument("--priority", type=int, default=0, help="higher runs first within the queue (default: 0)")
    submit.add_argument(
        "--working-dir", type=Path, default=Path("."), metavar="DIR", help="folder of code to snapshot (default: .)"
    )
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE",
        help="set an environment variable, which everybody can read; repeatable",
    )  # fmt: skip
    submit.add_argument(
        "--secret", action="append", default=[], metavar="NAME=FILE",
        help="keep a copy of the file that only you can read, and set NAME_FILE to its path for the job; repeatable",
    )  # fmt: skip
    submit.add_argument(
        "--resources", metavar="GANG",
        help="what it asks Ray for, e.g. 2*CPU=4,GPU=1@ray.io/accelerator-type=H100 (default: what the trainer or the "
        "sweep reports, else nothing)",
    )  # fmt: skip
    submit.add_argument(
        "--driver", metavar="BUNDLE",
        help="what the command itself takes, e.g. CPU=2,memory=4G (default: CPU=1; memory=512M if it asks Ray for any)",
    )  # fmt: skip
    submit.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE",
        help="only on nodes with this label: VALUE, !VALUE, in(A,B) or !in(A,B); repeatable",
    )  # fmt: skip
    submit.add_argument(
        "--max-runtime", metavar="TIME",
        help="an attempt runs no longer than this, e.g. 90m or 1-12:00:00; short jobs can go where long ones cannot",
    )  # fmt: skip
    submit.add_argument(
        "--at-the-limit", choices=("requeue", "fail"), default="requeue",
        help="after its checkpoint at --max-runtime, whether it goes on in another attempt (default: requeue)",
    )  # fmt: skip
    submit.add_argument(
        "--retries", type=int, default=2, metavar="N",
        help="how often it is tried again after something other than itself ended it (default: 2)",
    )  # fmt: skip
    submit.add_argument(
        "--after", action="append", default=[], metavar="JOB[:ok|any]",
        help="start after this job has succeeded (ok, the default) or has ended (any); repeatable",
    )  # fmt: skip
    submit.add_argument(
        "--array", type=Path, metavar="FILE.yaml",
        help="a job for each row of a list of mappings; {name} in the command is the row's value",
    )  # fmt: skip
    submit.add_argument("--hold", action="store_true", help="do not start it before `release`")
    submit.add_argument(
        "--anyway", action="store_true", help="queue it even if no nodes that there are now could ever hold it"
    )
    submit.add_argument(
        "--key", metavar="TEXT",
        help="of unfinished jobs with the same key there is one (default: the run's or the sweep's folder; for another "
        "command all that it is told here). An empty one allows any number",
    )  # fmt: skip
    submit.add_argument("--json", action="store_true", help="print JSON")
    submit.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command to run")


def _add_reading(commands: _Commands) -> None:
    listing = commands.add_parser("list", help="list waiting and running jobs, and the last ones that ended")
    _add_selection(listing)
    listing.add_argument("--all", action="store_true", help="include every job that has ended")
    listing.add_argument("--limit", type=_count, metavar="N", help="jobs on a page (default: 100; with --json: all)")
    listing.add_argument("--page", type=_count, metavar="K", help="page of all jobs, from the newest")
    listing.add_argument("--json", action="store_true", help="print JSON")
    for name, text in (
        ("show", "show one job with its attempts and its history"),
        ("why", "say what a job waits for, and when it can be expected to start"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("job", type=_job, metavar="JOB")
        command.add_argument("--json", action="store_true", help="print JSON")
    logs = commands.add_parser("logs", help="print the output of a job")
    logs.add_argument("job", type=_job, metavar="JOB")
    logs.add_argument("--address", metavar="URL", help=ADDRESS_HELP)
    logs.add_argument("--attempt", type=_count, metavar="N", help="of this attempt alone (default: of all)")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for the job to start and print until it ends")
    usage = commands.add_parser("usage", help="CPU- and GPU-hours, and steps that were lost")
    usage.add_argument("--by", choices=("user", "queue", "name"), default="user", help="grouped by (default: user)")
    usage.add_argument("--since", metavar="TIME", default="30d", help="how far back, e.g. 7d (default: 30d)")
    usage.add_argument("--json", action="store_true", help="print JSON")


def _add_changing(commands: _Commands) -> None:
    cancel = commands.add_parser("cancel", help="remove waiting jobs, and stop running ones (SIGTERM, later SIGKILL)")
    cancel.add_argument(
        "--now", action="store_true", help="record that running jobs have ended without asking Ray: its cluster is gone"
    )
    hold = commands.add_parser("hold", help="keep jobs from starting")
    release = commands.add_parser("release", help="let jobs start that were held or parked")
    requeue = commands.add_parser(
        "requeue", help="run jobs again that have ended; running ones checkpoint and start anew"
    )
    changing = commands.add_parser("set", help="change jobs that have not ended")
    changing.add_argument("--priority", type=int, metavar="N", dest="new_priority")
    changing.add_argument("--queue", dest="to_queue", metavar="NAME", help="move them to this queue")
    changing.add_argument("--max-runtime", metavar="TIME", help="`none` for no limit")
    for command in (cancel, hold, release, requeue, changing):
        _add_selection(command, "--of-queue" if command is changing else "--queue")
        command.add_argument("--force", action="store_true", help="also jobs of other users")
        command.add_argument("--json", action="store_true", help="print JSON")


def _add_selection(command: argparse.ArgumentParser, queue: str = "--queue") -> None:
    command.add_argument("jobs", type=_job, nargs="*", metavar="JOB")
    command.add_argument("--name", type=_pattern, metavar="PATTERN", help="jobs of this name; * stands for anything")
    command.add_argument("--user", type=_pattern, metavar="PATTERN", help="jobs of this user")
    command.add_argument(queue, type=_pattern, dest="team", metavar="NAME", help="jobs of this queue")
    command.add_argument("--state", action="append", choices=STATES, default=[], help="jobs in this state; repeatable")
    command.add_argument("--array", type=_job, metavar="JOB", help="jobs of the array whose first job this is")


def _add_queues(commands: _Commands) -> None:
    queues = commands.add_parser("queues", help="the queues that share the cluster, and what each may have")
    queues.add_argument("--json", action="store_true", help="print JSON")
    actions = queues.add_subparsers(dest="queues_action", metavar="ACTION")
    setting = actions.add_parser("set", help="make a queue, or change one")
    setting.add_argument("name", metavar="NAME")
    setting.add_argument("--weight", type=float, metavar="W", help="its part relative to the others' (default: 1)")
    setting.add_argument("--guaranteed", type=float, metavar="SHARE", help="0 to 1: what it gets back from borrowers")
    setting.add_argument("--maximum", type=float, metavar="SHARE", help="0 to 1: what it never exceeds")
    for option, text in (
        ("--max-running", "jobs that run at once"),
        ("--max-running-per-user", "jobs of one user that run at once"),
        ("--max-priority", "the highest priority of its jobs"),
    ):
        setting.add_argument(option, metavar="N", help=f"{text}; `none` for no limit")
    removing = actions.add_parser("remove", help="remove a queue without unfinished jobs")
    removing.add_argument("name", metavar="NAME")
    drain = commands.add_parser("drain", help="let no further job start, and wait for those that run")
    drain.add_argument("--off", action="store_true", help="let jobs start again")
    drain.add_argument(
        "--leave", action="store_true", help="ask running jobs to checkpoint and leave; they go on later"
    )
    drain.add_argument("--no-wait", action="store_true", help="do not wait for running jobs")
    drain.add_argument("--force", action="store_true", help="with --leave: also jobs of other users")
    gc = commands.add_parser("gc", help="remove old logs, snapshots and events")
    gc.add_argument("--older-than", metavar="TIME", default="30d", help="of jobs that ended so long ago (default: 30d)")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    gc.add_argument("--json", action="store_true", help="print JSON")


def _add_dispatch(commands: _Commands) -> None:
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
    dispatch.add_argument(
        "--listen", metavar="ADDRESS",
        help="address for the jobs' heartbeats (default: the one that this machine reaches Ray's dashboard from)",
    )  # fmt: skip
    dispatch.add_argument("--max-jobs", type=_count, default=200, metavar="N", help="jobs at once (default: 200)")
    for option, default, text in (
        ("--start-deadline", "10m", "stop a job whose gang has not formed by then"),
        ("--grace", "2m", "time to checkpoint after being asked to leave; then Ray stops the job"),
        ("--min-runtime", "5m", "no job is preempted before it ran this long"),
    ):
        dispatch.add_argument(option, metavar="TIME", default=default, help=f"{text} (default: {default})")
    dispatch.add_argument(
        "--max-preemptions", type=int, default=10, metavar="N", help="jobs preempted within 10 minutes (default: 10)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 0.05 to 3600 seconds")
    return value


def _job(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text}: allowed: the id of a job")
    return value


def _pattern(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("nothing; allowed: a name, in which * stands for anything")
    return text


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10**6:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 1 to 1000000")
    return value


def optional_count(text: str | None, option: str) -> int | None:
    """A whole number, or None for `none`.

    Raises:
        InputError: neither.
    """
    if text is None or text == "none":
        return None
    if not text.removeprefix("-").isdecimal() or abs(int(text)) > 10**6:
        raise InputError(f"{option} {text!r}: allowed: a whole number, or none")
    return int(text)
