"""What a run's folder says about it: whose name it is, how far it got, and who is working on it now."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from trainer.config import RunConfig
from trainer.paths import RunPaths
from trainer.settings import InputError

POLL_SECONDS = 0.5
JOB_PATIENCE_S = 60.0
State = Literal["new", "resumable", "done"]


def inspect(config: RunConfig, paths: RunPaths) -> State:
    """How far the run of this name got, for this configuration.

    Raises:
        InputError: the name belongs to a run of another method, or a checkpoint there does.
    """
    claimed = paths.identity.is_file()
    owner = read_json(paths.identity)["method_sha256"] if claimed else config.method_sha256
    if owner != config.method_sha256:
        raise InputError(
            f"run.name = {config.run.name!r}: taken by another method ({owner[:8]}, this is "
            f"{config.method_sha256[:8]}) in {paths.root}; "
            "allowed: another name, or none to have one made from the method"
        )
    _check_checkpoints(config, paths)
    if not claimed:
        return "new"
    return "done" if is_done(config, paths) else "resumable"


def _check_checkpoints(config: RunConfig, paths: RunPaths) -> None:
    """Refuse checkpoints that were put into the run's folder from elsewhere; damaged ones are passed over later."""
    for manifest in sorted(paths.checkpoints.glob("step-*/manifest.json")):
        try:
            owner = read_json(manifest)["method_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if owner != config.method_sha256:
            raise InputError(
                f"{manifest.parent}: a checkpoint of another method ({str(owner)[:8]}, this is "
                f"{config.method_sha256[:8]}); allowed: the run's own, so move it away"
            )


def read_run(folder: Path) -> tuple[RunConfig, RunPaths]:
    """The configuration and the files of a run.

    Raises:
        InputError: the folder is not that of a run.
    """
    paths = RunPaths(folder)
    try:
        return RunConfig.model_validate_json(json.dumps(read_json(paths.identity)["config"])), paths
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: not the folder of a run of this version: {reason}") from None


def is_done(config: RunConfig, paths: RunPaths) -> bool:
    """Whether the results are there for enough steps, in MLflow, and registered where that is asked for."""
    if not paths.summary.is_file():
        return False
    summary = read_json(paths.summary)
    name, gate = config.run.register_as, summary.get("gate") or {}
    registered = name is None or (summary["registered_model"], gate.get("alias")) == (name, config.run.alias)
    return summary["step"] >= config.training.steps and summary["recorded"] and registered


def claim(config: RunConfig, paths: RunPaths) -> None:
    """Tie the run's name to this method."""
    paths.root.mkdir(parents=True, exist_ok=True)
    if not paths.identity.exists():
        write_json(paths.identity, {"method_sha256": config.method_sha256, "config": config.model_dump(mode="json")})


class Busy(InputError):
    """Another process holds what this one wants to work on."""


def patience() -> float:
    """How long a command waits for another one that holds what it wants.

    Not at all for a person; a job of the queue may be tried again before its killed predecessor is quite gone.
    """
    return JOB_PATIENCE_S if "DUALVIEW_JOB" in os.environ else 0.0


def locked(paths: RunPaths, patience_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold the run for this process; the lock goes with the process, however it ends.

    Args:
        paths: of the run.
        patience_s: how long to wait for another process that holds it.

    Raises:
        Busy: another process holds it.
        InputError: the folder cannot be made.
    """
    return hold(paths.lock, f"run.name = {paths.root.name!r}: another process is working on this run", patience_s)


@contextmanager
def hold(lock: Path, busy: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, whose folder is made; `busy` says what another process that holds it is doing."""
    deadline = time.monotonic() + patience_s
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except OSError as error:
        raise InputError(f"run.storage: {lock.parent}: {error.strerror}; allowed: a folder to write to") from None
    with file:
        while not _lock(file):
            if time.monotonic() >= deadline:
                raise Busy(f"{busy}; allowed: one at a time")
            time.sleep(POLL_SECONDS)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return json.loads(path.read_text())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object so that readers see the old file or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)
