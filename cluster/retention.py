"""What is kept of jobs that ended long ago: their rows, and neither output, code nor history."""

import time
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy import delete, select

from cluster import secrets, snapshot
from cluster.database.tables import Attempt, Event, Job
from cluster.files import LOGS, PART, File, Files, log_name
from cluster.spec import END_STATES
from cluster.store import Store

GRACE_S = 3600.0  # a snapshot this young may be of a job that is being submitted


@dataclass
class Collected:
    """How much was removed."""

    logs: int = 0
    snapshots: int = 0
    secrets: int = 0
    events: int = 0
    size: int = 0

    def describe(self) -> str:
        """It in words."""
        parts = (f"{self.logs} logs", f"{self.snapshots} snapshots", f"{self.secrets} secrets", f"{self.events} events")
        return f"{', '.join(parts)}: {self.size / 2**20:.1f} MiB"


def collect(store: Store, ended_before: float, dry_run: bool = False) -> Collected:
    """Remove logs, snapshots and events of jobs that ended before a time, and secrets of all that have ended.

    Args:
        store: the queue.
        ended_before: the time, in seconds since the epoch.
        dry_run: whether only to count.
    """
    old = (Job.state.in_(END_STATES), Job.ended_at < ended_before)
    found = Collected()
    with store.session(write=False) as session:
        attempts = session.scalars(select(Attempt.submission_id).join(Job).where(*old)).all()
        kept = set(
            session.scalars(select(Job.snapshot).where(~(Job.state.in_(END_STATES) & (Job.ended_at < ended_before))))
        )
        environments = session.scalars(select(Job.environment).where(Job.state.not_in(END_STATES))).all()
    names = {log_name(submission_id) for submission_id in attempts}
    for file in store.files.list(LOGS):
        if file.name in names or (file.name.endswith(PART) and not _is_young(file, ended_before)):
            found.logs += _remove(store.files, file, found, dry_run)
    for file in store.files.list(snapshot.FOLDER):
        digest, young = PurePosixPath(file.name).stem, _is_young(file, ended_before)
        is_ours = file.name == snapshot.name_of(digest) or file.name.endswith(PART)
        if is_ours and digest not in kept and not young:
            found.snapshots += _remove(store.files, file, found, dry_run)
    found.secrets = secrets.collect(store.anchor, environments, time.time() - GRACE_S, dry_run)
    with store.session(write=not dry_run) as session:
        chosen = select(Event.id).join(Job).where(*old)
        found.events = len(session.scalars(chosen).all())
        if not dry_run:
            session.execute(delete(Event).where(Event.id.in_(chosen)))
    return found


def _is_young(file: File, ended_before: float) -> bool:
    return file.modified > max(ended_before, time.time() - GRACE_S)


def _remove(files: Files, file: File, found: Collected, dry_run: bool) -> int:
    found.size += file.size
    if not dry_run:
        files.remove(file.name)
    return 1
