"""The output of `list` and `show`, as tables and as JSON rows."""

import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.spec import END_STATES, format_gang
from cluster.tables import Attempt, Event, Job

FILE_WIDTH = 180  # characters, as are the next two
MAX_NAME_WIDTH = 32
MIN_REASON_WIDTH = 20
STATE_COLOURS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "dim"}


def job_row(job: Job, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A job for `--json`."""
    keys = ("id", "name", "state", "priority", "reason", "command", "gangs", "snapshot", "submitted_at", "ended_at")
    return {key: getattr(job, key) for key in keys} | {
        "cancel_requested": job.cancel_requested,
        "attempts": [attempt_row(attempt) for attempt in attempts],
    }


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    """An attempt for `--json`."""
    keys = ("number", "submission_id", "confirmed", "began_at", "ended_at", "status", "exit_code", "reason")
    return {key: getattr(attempt, key) for key in keys}


def console() -> Console:
    """The console for tables: as wide as the terminal, or FILE_WIDTH in a file, so that a job takes one line."""
    plain = Console(highlight=False, soft_wrap=True)
    return plain if plain.is_terminal else Console(highlight=False, soft_wrap=True, width=FILE_WIDTH)


def jobs_table(rows: Sequence[tuple[Job, Sequence[Attempt]]]) -> Table:
    """A table of jobs and their attempts: what runs, what waits and why, what has ended and how."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "name", "state", "priority", "submitted", "ran", "attempts", "why"):
        numeric = title in ("job", "priority", "attempts", "ran")
        table.add_column(
            title,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=title not in ("name", "why"),
            max_width=MAX_NAME_WIDTH if title == "name" else None,
            min_width=MIN_REASON_WIDTH if title == "why" else None,
        )
    for job, attempts in rows:
        table.add_row(
            str(job.id),
            job.name,
            Text(job.state, STATE_COLOURS[job.state]),
            str(job.priority),
            format_time(job.submitted_at),
            format_duration(sum((attempt.ended_at or time.time()) - attempt.began_at for attempt in attempts)),
            str(len(attempts)),
            Text(job.reason),
        )
    return table


def show(console: Console, job: Job, attempts: Sequence[Attempt], events: Sequence[Event]) -> None:
    """Print one job, its attempts and its events."""
    fields = {
        "state": Text.assemble((job.state, STATE_COLOURS[job.state]), f"  {job.reason}"),
        "command": Text(shlex.join(job.command)),
        "priority": str(job.priority),
        "asks for": Text(" or ".join(format_gang(gang) for gang in job.gangs)),
        "code": Text(f"snapshot {job.snapshot[:12]}"),
        "variables": Text(" ".join(job.environment) or "none"),
        "submitted": format_time(job.submitted_at),
        **({"ended": format_time(job.ended_at)} if job.ended_at is not None and job.state in END_STATES else {}),
    }
    grid = Table.grid(padding=(0, 2))
    for key, value in fields.items():
        grid.add_row(f"  {key}", value)
    console.print(f"job {job.id}  {job.name}", markup=False)
    console.print(grid)
    for attempt in attempts:
        took = format_duration((attempt.ended_at or time.time()) - attempt.began_at)
        status = attempt.reason or ("runs" if attempt.confirmed else "is being handed to Ray")
        console.print(f"  attempt {attempt.number}  {attempt.submission_id}  {took}  {status}", markup=False)
    for event in events:
        console.print(f"  {format_time(event.at)}  {event.text}", markup=False)


def format_time(seconds: float) -> str:
    """A time, in seconds since the epoch, as the local time of day; with the date if that is not today's."""
    then = datetime.fromtimestamp(seconds).astimezone()
    today = then.date() == datetime.now().astimezone().date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def format_duration(seconds: float) -> str:
    """A duration: 45 s, 3:05, 2:03:05."""
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
