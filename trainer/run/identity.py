"""What a run's folder says about it: whose name it is, how far it got, and who is working on it now."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.files import hold, read_json, write_json
from trainer.run.paths import RunPaths
from trainer.run.summary import RunSummary, summary_from_json

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
    summary = read_summary(paths)
    if summary is None:
        return False
    said, name = summary.registration, config.run.register_as
    alias = None if said.gate is None else said.gate.alias
    registered = name is None or (said.registered_model, alias) == (name, config.run.alias)
    return summary.step >= config.training.steps and said.recorded and registered


def read_summary(paths: RunPaths) -> RunSummary | None:
    """How a run ended; None while it has not.

    Raises:
        InputError: the file is not what a run leaves.
    """
    if not paths.summary.is_file():
        return None
    try:
        return summary_from_json(read_json(paths.summary))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{paths.summary}: not what a run leaves ({type(error).__name__}: {error}); allowed: that file, or none to "
            "have the model evaluated again"
        ) from None


def claim(config: RunConfig, paths: RunPaths) -> None:
    """Tie the run's name to this method."""
    paths.root.mkdir(parents=True, exist_ok=True)
    if not paths.identity.exists():
        write_json(paths.identity, {"method_sha256": config.method_sha256, "config": config.model_dump(mode="json")})


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
