"""`python -m cluster`: submit jobs to the queue, inspect them, and dispatch them to Ray."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cluster.arguments import optional_count, parser
from cluster.command import run_command
from cluster.errors import InputError

if TYPE_CHECKING:
    from cluster.database.tables import Job
    from cluster.store import Selection, Store

MAX_ENDED_SHOWN = 10
LIST_LIMIT = 100
DRAIN_POLL_S = 1.0


def queue_url(given: str | None) -> str:
    """The URL of the queue's database: `given`, else the environment's, else the default in the storage folder."""
    if given or os.environ.get("DUALVIEW_QUEUE"):
        return given or os.environ["DUALVIEW_QUEUE"]
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    return f"sqlite:///{quote(str(Path(storage, 'queue', 'queue.db')))}"


def _open(options: argparse.Namespace) -> "Store":
    from cluster.store import Store

    return Store.open(queue_url(options.store), create=False)


def submit(options: argparse.Namespace) -> None:
    """Queue a job; all input is validated before anything is written."""
    from cluster import submission

    submission.submit(options, queue_url(options.store))


def _selection(options: argparse.Namespace) -> "Selection":
    from cluster.store import Selection

    words = (options.name or "", options.user or "", options.team or "")
    return Selection(tuple(options.jobs), tuple(options.state), *words, options.array)


def list_jobs(options: argparse.Namespace) -> None:
    """List waiting and running jobs, and the last ones that ended."""
    from cluster import views
    from cluster.spec import END_STATES, OPEN_STATES
    from cluster.store import Selection

    store, selection = _open(options), _selection(options)
    chosen = selection != type(selection)()
    limit, page = options.limit or LIST_LIMIT, options.page or 1
    if options.json or options.all or chosen or options.page:
        whole = options.json and options.limit is None and options.page is None
        skipped = 0 if whole else (page - 1) * limit
        jobs = store.select(selection, newest=None if whole else limit, skip=skipped)
        hidden = store.count(selection) - len(jobs) - skipped
        more = f"and {hidden} older ones (--page {page + 1}, --limit)"
    else:
        running = store.jobs(*OPEN_STATES)
        waiting = store.oldest(Selection(states=("queued",)), limit)
        ended = store.select(Selection(states=END_STATES), newest=MAX_ENDED_SHOWN)
        jobs = sorted([*running, *waiting, *ended], key=lambda job: job.id)
        hidden = store.count(selection) - len(jobs)
        more = f"and {hidden} more (--all shows those that ended earlier, --limit more of those that wait)"
    attempts = store.attempts_of(job.id for job in jobs)
    if options.json:
        print(json.dumps([views.job_row(job, attempts[job.id]) for job in jobs], indent=2))
        return
    if not jobs:
        print("no such jobs" if chosen else "the queue is empty; python -m cluster submit -- COMMAND …")
        return
    views.console().print(views.jobs_table([(job, attempts[job.id]) for job in jobs]))
    if hidden > 0:
        print(more)
    if any(job.state not in END_STATES for job in jobs):
        _say_if_nobody_dispatches(store)


def _say_if_nobody_dispatches(store: "Store") -> None:
    if not store.database.is_led():
        print(f"no dispatcher is running{store.database.where_led}: python -m cluster dispatch")


def show(options: argparse.Namespace) -> None:
    """Show one job, its attempts and its history."""
    from cluster import views

    store = _open(options)
    job, attempts, events = store.job(options.job), store.attempts(options.job), store.events(options.job)
    if options.json:
        history = [{"at": event.at, "text": event.text} for event in events]
        print(json.dumps({**views.job_row(job, attempts), "events": history}, indent=2))
    else:
        views.show(views.console(), job, attempts, events)


def why(options: argparse.Namespace) -> None:
    """Say what a job waits for."""
    from cluster import views

    store = _open(options)
    job = store.job(options.job)
    row = {"id": job.id, "state": job.state, "code": job.reason_code, "reason": job.reason, "start_at": job.start_at}
    if options.json:
        print(json.dumps(row, indent=2))
        return
    views.why(views.console(), job)
    if job.state == "queued":
        _say_if_nobody_dispatches(store)


def logs(options: argparse.Namespace) -> None:
    """Print a job's output."""
    from cluster.logs import print_logs

    print_logs(_open(options), options.job, options.follow, options.address, options.attempt)


def _change_each(options: argparse.Namespace, change: "Callable[[Store, int], str]") -> None:
    """Change the selected jobs one after another, and print what was done; others' need --force.

    What cannot be done to a job that was named is an error, once it is done to the others; of those that a pattern
    selects, it is left out.
    """
    store, selection = _open(options), _selection(options)
    if selection == type(selection)():
        raise InputError("no jobs; allowed: their ids, or --name, --user, --queue, --state or --array")
    for job_id in options.jobs:
        store.job(job_id)
    jobs = store.select(selection)
    _check_own(jobs, options.force)
    done, problems = list[dict[str, Any]](), list[str]()
    for job in jobs:
        try:
            done.append({"id": job.id, "done": change(store, job.id)})
        except InputError as error:
            problems += [str(error)] * (job.id in options.jobs)
    if options.json:
        print(json.dumps(done, indent=2))
    else:
        print("".join(f"job {each['id']} {each['done']}\n" for each in done), end="")
    if problems or not done:
        raise InputError("; ".join(problems) or "no such jobs; `python -m cluster list` shows what there is")


def _check_own(jobs: "Sequence[Job]", force: bool) -> None:
    """Raise InputError where jobs are other users', unless that is meant."""
    from cluster.submission import user

    mine = user()
    others = [job for job in jobs if job.user not in (mine, "unknown")]
    if others and not force:
        raise InputError(f"job {others[0].id} is {others[0].user}'s, and you are {mine}; allowed: your own, or --force")


def cancel(options: argparse.Namespace) -> None:
    """Cancel jobs that wait or run."""
    from cluster import secrets

    def change(store: "Store", job_id: int) -> str:
        job = store.cancel(job_id, options.now)
        if job.state != "cancelled":
            return "will be stopped by the dispatcher"
        secrets.forget(store.anchor, job.environment)
        return "is cancelled"

    _change_each(options, change)


def hold(options: argparse.Namespace) -> None:
    """Keep jobs from starting."""

    def change(store: "Store", job_id: int) -> str:
        waits = store.hold(job_id).state == "queued"
        return "is held" + ("" if waits else ": it runs on, and does not start again")

    _change_each(options, change)


def release(options: argparse.Namespace) -> None:
    """Let jobs start that were held or parked."""

    def change(store: "Store", job_id: int) -> str:
        store.release(job_id)
        return "is released"

    _change_each(options, change)


def requeue(options: argparse.Namespace) -> None:
    """Run jobs again."""

    def change(store: "Store", job_id: int) -> str:
        job = store.requeue(job_id)
        done = "is queued again" if job.state == "queued" else "is asked to leave, and starts again"
        return f"{done}, once it is released" if job.hold else done

    _change_each(options, change)


def change(options: argparse.Namespace) -> None:
    """Change jobs that have not ended."""
    from cluster.request import parse_duration
    from cluster.spec import MAX_PRIORITY

    fields: dict[str, Any] = {}
    if options.new_priority is not None:
        if abs(options.new_priority) > MAX_PRIORITY:
            raise InputError(f"--priority {options.new_priority}: allowed: {-MAX_PRIORITY} to {MAX_PRIORITY}")
        fields["priority"] = options.new_priority
    if options.to_queue is not None:
        fields["queue"] = options.to_queue
    if options.max_runtime is not None:
        none = options.max_runtime == "none"
        fields["max_runtime_s"] = None if none else parse_duration(options.max_runtime, "--max-runtime")
    if not fields:
        raise InputError("nothing to change; allowed: --priority, --queue or --max-runtime")

    def each(store: "Store", job_id: int) -> str:
        store.change(job_id, **fields)
        return "is changed"

    _change_each(options, each)


def queues(options: argparse.Namespace) -> None:
    """Show the queues that share the cluster, or change one."""
    from cluster import views
    from cluster.accounts import Accounts
    from cluster.store import Store

    if options.queues_action == "set":
        fields = _queue_fields(options)
        team = Accounts(Store.open(queue_url(options.store), files=options.files)).set_queue(options.name, **fields)
        print(f"queue {team.name}: weight {team.weight:g}, guaranteed {team.guaranteed:g}, at most {team.maximum:g}")
        return
    accounts = Accounts(_open(options))
    if options.queues_action == "remove":
        accounts.remove_queue(options.name)
        print(f"queue {options.name} is removed")
        return
    terms, counts = accounts.terms(time.time()), accounts.counts()
    if options.json:
        rows = [
            {"name": team.name, **asdict(terms[team.name]), "max_priority": team.max_priority}
            for team in accounts.queues()
        ]
        print(json.dumps([{**row, "jobs": counts.get(str(row["name"]), {})} for row in rows], indent=2))
    else:
        views.console().print(views.queues_table(accounts.queues(), terms, counts))


def _queue_fields(options: argparse.Namespace) -> dict[str, Any]:
    import re

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", options.name):
        raise InputError(f"queue {options.name!r}: allowed: letters, digits, '.', '_' and '-'")
    fields: dict[str, Any] = {}
    for name, low, high in (("weight", 1e-6, 1e6), ("guaranteed", 0.0, 1.0), ("maximum", 0.0, 1.0)):
        value = getattr(options, name)
        if value is not None:
            if not low <= value <= high:
                raise InputError(f"--{name} {value}: allowed: {low:g} to {high:g}")
            fields[name] = value
    for name in ("max_running", "max_running_per_user", "max_priority"):
        text = getattr(options, name)
        if text is not None:
            fields[name] = optional_count(text, f"--{name.replace('_', '-')}")
    return fields


def usage(options: argparse.Namespace) -> None:
    """Show what was used."""
    from cluster import views
    from cluster.accounts import Accounts
    from cluster.request import parse_duration

    since = time.time() - parse_duration(options.since, "--since")
    rows = Accounts(_open(options)).usage(options.by, since, time.time())
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        views.console().print(views.usage_table(options.by, rows))


def drain(options: argparse.Namespace) -> None:
    """Let no further job start, and wait for those that run."""
    from cluster.spec import OPEN_STATES, Asked

    store = _open(options)
    if options.leave and not options.off:
        _check_own(store.jobs(*OPEN_STATES), options.force)
    store.drain(not options.off)
    if options.off:
        print("jobs start again")
        return
    print("no further job starts; `python -m cluster drain --off` lets them", flush=True)
    if options.leave:
        for attempt in store.attempts():
            store.ask(attempt, Asked(to="leave", reason="the queue drains"))
    before = -1
    while not options.no_wait and (left := len(store.attempts())):
        if left != before:
            print(f"{left} job{'s' if left > 1 else ''} still running", flush=True)
        before = left
        time.sleep(DRAIN_POLL_S)


def gc(options: argparse.Namespace) -> None:
    """Remove what is old."""
    from cluster import retention
    from cluster.request import parse_duration

    store = _open(options)
    found = retention.collect(store, time.time() - parse_duration(options.older_than, "--older-than"), options.dry_run)
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        print(("would remove " if options.dry_run else "removed ") + found.describe())


def dispatch(options: argparse.Namespace) -> None:
    """Dispatch the queue's jobs until interrupted or, with --drain, until none is left."""
    from cluster import dispatching

    dispatching.dispatch(options, queue_url(options.store))


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "submit": submit, "list": list_jobs, "show": show, "why": why, "logs": logs, "cancel": cancel, "hold": hold,
    "release": release, "requeue": requeue, "set": change, "queues": queues, "usage": usage, "drain": drain, "gc": gc,
    "dispatch": dispatch,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: ACTIONS[options.action](options))


if __name__ == "__main__":
    sys.exit(main())
