"""The output of `list` and `show`, as tables and as JSON rows."""

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cluster.accounts import Used
from cluster.admission import Terms
from cluster.command import visible
from cluster.database.tables import Attempt, Event, Job, Team
from cluster.reasons import EXPLANATIONS, Reason
from cluster.resources import Bundle, Shape, format_gang
from cluster.spec import END_STATES

FILE_WIDTH = 180  # characters, as are the next two
MAX_NAME_WIDTH = 32
MIN_REASON_WIDTH = 20
STATE_COLOURS = {
    "queued": "yellow", "starting": "blue", "running": "cyan",
    "succeeded": "green", "failed": "red", "cancelled": "dim",
}  # fmt: skip


def job_row(job: Job, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A job for `--json`."""
    keys = (
        "id", "name", "user", "queue", "state", "priority", "reason", "reason_code", "start_at", "command", "gangs",
        "driver", "snapshot", "max_runtime_s", "at_the_limit", "retries", "after", "array_id", "array_index", "hold",
        "preemptions", "submitted_at", "ended_at", "cancel_requested",
    )  # fmt: skip
    return {key: getattr(job, key) for key in keys} | {"attempts": [attempt_row(attempt) for attempt in attempts]}


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    """An attempt for `--json`."""
    keys = (
        "number", "submission_id", "confirmed", "began_at", "running_at", "ended_at", "status", "exit_code", "reason",
        "placement", "asked", "asked_at", "asked_reason", "asked_by", "step", "saved_step", "cpus", "gpus",
    )  # fmt: skip
    return {key: getattr(attempt, key) for key in keys}


class _PlainConsole(Console):
    """rich's console, on which a string is what it says: no markup, no emoji, and no escape sequence for a terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - those of rich
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def console() -> Console:
    """The console for tables: as wide as the terminal, or FILE_WIDTH in a file, so that a job takes one line."""
    options: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
    plain = _PlainConsole(**options)
    return plain if plain.is_terminal else _PlainConsole(**options, width=FILE_WIDTH)


def jobs_table(rows: Sequence[tuple[Job, Sequence[Attempt]]]) -> Table:
    """A table of jobs and their attempts: what runs, what waits and why, what has ended and how."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "name", "user", "queue", "state", "priority", "submitted", "ran", "attempts", "why"):
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
            Text(job.user),
            job.queue,
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
        "whose": Text(f"{job.user}, queue {job.queue}, priority {job.priority}"),
        "asks for": Text(asks_for(job)),
        **({"limit": _limit(job)} if job.max_runtime_s is not None else {}),
        **({"comes after": ", ".join(f"job {each} ({how})" for each, how in job.after.items())} if job.after else {}),
        **({"array": f"{job.array_index} of the one of job {job.array_id}"} if job.array_id is not None else {}),
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
        where = f"  room on {_nodes(attempt)}" if attempt.placement else ""
        console.print(f"  attempt {attempt.number}  {attempt.submission_id}  {took}{where}  {status}", markup=False)
    for event in events:
        console.print(f"  {format_time(event.at)}  {event.text}", markup=False)


def why(console: Console, job: Job) -> None:
    """Print what a job waits for."""
    code = Text(f"  ({job.reason_code})" if job.reason_code else "", "dim")
    console.print(Text.assemble(f"job {job.id}  {job.name}  ", (job.state, STATE_COLOURS[job.state]), code))
    console.print(f"  {job.reason}", markup=False)
    if job.state != "queued":
        return
    explanation = EXPLANATIONS[Reason(job.reason_code or "new")]
    if explanation != job.reason:
        console.print(f"  {explanation}", style="dim", markup=False)
    unknown = "not known (it is for the first hundred that wait for room, behind jobs that declare --max-runtime)"
    expected = f"{format_time(job.start_at or 0.0)}, if everything takes as long as declared and nothing goes before it"
    console.print(f"  expected start: {expected if job.start_at else unknown}", markup=False)


def asks_for(job: Job) -> str:
    """What a job asks for, in words."""
    gangs = [[Bundle.model_validate(bundle) for bundle in gang] for gang in job.gangs]
    shape = Shape.of(gangs, Bundle.model_validate(job.driver))
    wanted = " or ".join(format_gang(gang) for gang in shape.gangs if gang)
    return f"{wanted}, and {shape.driver} for its driver" if wanted else str(shape.driver)


def queues_table(teams: Sequence[Team], terms: Mapping[str, Terms], counts: Mapping[str, Mapping[str, int]]) -> Table:
    """The queues, what each may have, and what it has."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "queue", "weight", "guaranteed", "maximum", "jobs at once", "a user's", "priority to", "used", "waiting",
        "running",
    ):  # fmt: skip
        table.add_column(title, justify="left" if title == "queue" else "right")
    for team in teams:
        count = counts.get(team.name, {})
        limits = (team.max_running, team.max_running_per_user, team.max_priority)
        table.add_row(
            team.name,
            f"{team.weight:g}",
            f"{team.guaranteed:.0%}",
            f"{team.maximum:.0%}",
            *("any" if limit is None else str(limit) for limit in limits),
            f"{terms[team.name].usage:.1%}",
            str(count.get("queued", 0)),
            str(count.get("running", 0) + count.get("starting", 0)),
        )
    return table


def usage_table(by: str, rows: Sequence[Used]) -> Table:
    """What was used."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (by, "jobs", "CPU-hours", "GPU-hours", "mean wait", "lost steps", "preemptions"):
        table.add_column(title, justify="left" if title == by else "right")
    for row in rows:
        hours = (f"{row.cpu_hours:.2f}", f"{row.gpu_hours:.2f}")
        counts = (str(row.lost_steps), str(row.preemptions))
        table.add_row(Text(row.group), str(row.jobs), *hours, format_duration(row.waited_s), *counts)
    return table


def _limit(job: Job) -> str:
    then = "goes on in another attempt" if job.at_the_limit == "requeue" else "fails"
    return f"{format_duration(job.max_runtime_s or 0)}, then it {then}"


def _nodes(attempt: Attempt) -> str:
    nodes = sorted((attempt.placement or {}).get("usage", {}))
    return f"{len(nodes)} nodes" if len(nodes) > 1 else f"node {nodes[0][:8]}" if nodes else "no node"


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
