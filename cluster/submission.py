"""`python -m cluster submit`: from a folder and a command line to a job; all is checked before anything is written."""

import argparse
import getpass
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster import request, secrets, snapshot
from cluster.accounts import Accounts
from cluster.admission import DEFAULT_QUEUE, Terms, impossible
from cluster.command import printable
from cluster.database.tables import Job
from cluster.errors import InputError, NoQueueError
from cluster.files import Folder
from cluster.placement import Cluster
from cluster.resources import Shape
from cluster.spec import AfterHow, JobSpec
from cluster.store import Store

MAX_NAMED = 10  # files that go along untracked


def submit(options: argparse.Namespace, url: str) -> None:
    """Queue a job, or an array of them."""
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    folder: Path = options.working_dir.absolute()
    contents = snapshot.list_files(folder)
    after = _comes_after(options, url)
    variables = request.job_environment(options.env, snapshot.git_commit(folder))
    given = secrets.read(options.secret)
    with tempfile.TemporaryDirectory() as scratch:
        archive = snapshot.archive_path(Path(scratch), snapshot.create(folder, contents.names, Path(scratch)))
        place = _Place(folder, archive, frozenset(contents.names))
        if options.array:
            rows = request.read_array(options.array)
            specs = _array(options, command, place, variables, after, rows)
        else:
            specs = [_spec(options, command, place, variables, after, None)]
        store = Store.open(url, files=options.files)
        if given and not isinstance(store.files, Folder):
            raise InputError(
                f"--secret: this queue keeps its files at {store.files.uri}, where none is its user's alone; allowed: "
                "a queue whose files are in a shared folder"
            )
        if given:
            secrets.check_reader(store.anchor)
        for spec in specs:
            secrets.check_variables(store.anchor, spec.environment)
        if not options.anyway:
            _check_possible(store, specs)
        snapshot.keep(archive, store.files)
        jobs = _queue(store, specs, options, given)
    if options.json:
        _print_json(jobs, contents)
    else:
        _say(jobs, contents)


def _comes_after(options: argparse.Namespace, url: str) -> dict[int, AfterHow]:
    """What `--after` says, looked at with `--queue` and `--priority` before anything is asked or written."""
    after = request.parse_after(options.after)
    try:
        return Store.open(url, create=False).comes_after(after, options.team, options.priority)
    except NoQueueError:
        if options.team != DEFAULT_QUEUE:
            raise InputError(
                f"queue {options.team!r}: no such queue; allowed: {DEFAULT_QUEUE} (`queues set NAME` makes one)"
            ) from None
        for job in after:
            raise InputError(f"job {job}: no such job; allowed: submit one first") from None
        return after


def _array(
    options: argparse.Namespace,
    command: list[str],
    place: "_Place",
    variables: dict[str, str],
    after: dict[int, AfterHow],
    rows: list[dict[str, str]],
) -> list[JobSpec]:
    """A job of each row; each is asked about itself, some at a time."""

    def made(index: int) -> JobSpec:
        environment = {**variables, "DUALVIEW_ARRAY_INDEX": str(index)}
        try:
            return _spec(options, request.fill(command, rows[index]), place, environment, after, index)
        except InputError as error:
            raise InputError(f"--array {options.array}: row {index + 1}: {error}") from None

    place.unpack(request.fill(command, rows[0]))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            specs: list[JobSpec] = []
            for spec in pool.map(made, range(len(rows))):
                specs.append(spec)
                if len(specs) % 20 == 0:
                    print(f"checked {len(specs)} of {len(rows)} rows", file=sys.stderr)
            return specs
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise


class _Place:
    """Where commands are asked about themselves: in the unpacked snapshot, where they will run."""

    def __init__(self, folder: Path, archive: Path, names: frozenset[str]) -> None:
        self.folder, self.archive, self.names = folder, archive, names

    def unpack(self, command: list[str]) -> Path:
        """The folder with the unpacked snapshot, if the command is going to be asked there."""
        there = self.archive.with_suffix("")
        if not there.exists() and request.describes_itself(command):
            snapshot.unpack(self.archive, there)
        return there

    def describe(self, command: list[str], variables: dict[str, str]) -> dict[str, Any] | None:
        """What a command says of itself; None for one that does not.

        Raises:
            InputError: it rejects its input; paths that are in the folder and not in the snapshot are named.
        """
        if not request.describes_itself(command):
            return None
        there = self.unpack(command)
        try:
            return request.describe(command, there, variables)
        except InputError as error:
            words = [*(word.rpartition("=")[2] for word in command), *re.findall(r"'([^']+)'", str(error))]
            missing = next(
                (word for word in words if _is_there(self.folder, word) and not _is_there(there, word)), None
            )
            if missing is None:
                raise
            raise InputError(
                f"{error}; {missing} is in {self.folder}, but git ignores it, so it is not in the job's snapshot: "
                "allowed: an absolute path that the cluster sees, or a file that is not ignored"
            ) from None


def _is_there(folder: Path, word: str) -> bool:
    try:
        return bool(word) and not word.startswith("/") and (folder / word).exists()
    except (OSError, ValueError):
        return False


def _spec(
    options: argparse.Namespace,
    command: list[str],
    place: _Place,
    environment: dict[str, str],
    after: dict[int, AfterHow],
    index: int | None,
) -> JobSpec:
    request.check_command(command)
    request.check_runs(command, place.names, place.folder)
    description = place.describe(command, environment)
    gangs, driver = request.gangs_and_driver(description, options.resources, options.driver, options.label)
    name = options.name or request.job_name(description, command)
    fields: dict[str, Any] = {
        "name": name if index is None or (description and not options.name) else f"{name}-{index}",
        "command": command,
        "priority": options.priority,
        "environment": environment,
        "gangs": gangs,
        "driver": driver,
        "user": user(),
        "queue": options.team,
        "max_runtime_s": request.parse_duration(options.max_runtime, "--max-runtime") if options.max_runtime else None,
        "at_the_limit": options.at_the_limit,
        "retries": options.retries,
        "after": after,
        "says_when": description is not None and "run" in description,
        "snapshot": place.archive.stem,
    }
    if options.key:
        fields["key"] = options.key if index is None else f"{options.key}-{index}"
    else:
        fields["key"] = request.job_key(description, fields) if options.key is None else None
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        allowed = problem["msg"].replace("Input should be", "allowed:").replace("String should", "allowed: it should")
        raise InputError(f"{problem['loc'][0]} = {problem['input']!r}: {allowed}") from None


def _check_possible(store: Store, specs: Sequence[JobSpec]) -> None:
    """Raise InputError for what the nodes or its queue could not hold if nothing ran, as far as they have been seen."""
    nodes = store.nodes()
    shapes = [Shape.of(spec.gangs, spec.driver) for spec in specs] if nodes else []
    cluster = Cluster(nodes, set(shapes))
    terms = Accounts(store).terms(time.time())
    for shape in set(shapes):
        queue = specs[0].queue
        text = impossible(cluster, shape, cluster.demands(shape), queue, terms.get(queue, Terms()))
        if text is not None:
            raise InputError(f"{text}; allowed: what there is, or --anyway for nodes that are still to come")


def _queue(
    store: Store, specs: Sequence[JobSpec], options: argparse.Namespace, given: dict[str, bytes]
) -> list[tuple[Job, bool]]:
    """The jobs, and whether each is new."""
    kept = [secrets.keep(store.anchor, each, given) for each in specs] if given else specs
    try:
        jobs = store.submit_all(kept, options.hold, array=options.array is not None)
    except BaseException:
        for spec in kept if given else ():
            secrets.forget(store.anchor, spec.environment)
        raise
    for spec, (_, new) in zip(kept, jobs, strict=True):
        if given and not new:
            secrets.forget(store.anchor, spec.environment)
    return jobs


def _print_json(jobs: Sequence[tuple[Job, bool]], contents: snapshot.Contents) -> None:
    rows = [{"id": job.id, "name": job.name, "state": job.state, "new": new} for job, new in jobs]
    left_out = [path for path, kind in contents.left_out.items() if kind]
    print(json.dumps({"jobs": rows, "not_in_the_snapshot": left_out, "untracked": contents.untracked}, indent=2))


def _say(jobs: Sequence[tuple[Job, bool]], contents: snapshot.Contents) -> None:
    for job, new in jobs:
        if not new:
            print(f"job {job.id} is {job.state} already: {job.name}, with the same key (--key '' queues another)")
    added = [job for job, new in jobs if new]
    if len(added) == 1:
        [job] = added
        where = "" if job.queue == "default" else f", queue {job.queue}"
        print(f"job {job.id} queued: {job.name} (priority {job.priority}{where}); python -m cluster logs -f {job.id}")
    elif added:
        first, last = added[0], added[-1]
        print(
            f"jobs {first.id} to {last.id} queued: {len(added)} of an array; python -m cluster list --array {first.id}"
        )
    _say_of_snapshot(contents)


def _say_of_snapshot(contents: snapshot.Contents) -> None:
    for path, kind in contents.left_out.items():
        if kind:
            print(f"  not in its snapshot: {printable(path)} ({printable(kind)})")
    for path in contents.untracked[:MAX_NAMED]:
        print(f"  goes along, though git does not track it: {printable(path)}")
    if len(contents.untracked) > MAX_NAMED:
        print(f"  and {len(contents.untracked) - MAX_NAMED} more of these ({snapshot.IGNORE} leaves files out)")


def user() -> str:
    """Who submits: as the system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
