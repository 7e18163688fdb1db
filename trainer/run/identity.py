"""What a run's folder says about it: whose name it is, how far it got, and who is working on it now."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import history
from trainer.config.load import name_by_digest
from trainer.config.run_config import NOT_METHOD, RunConfig, canonical
from trainer.errors import InputError
from trainer.files import file_lock, read_json, write_json
from trainer.run.paths import RunPaths
from trainer.run.summary import RunSummary, summary_from_json

JOB_LOCK_TIMEOUT_S = 60.0
State = Literal["new", "resumable", "done"]


@dataclass(frozen=True)
class Resolved:
    """What a command comes to, once it is known what there is.

    Attributes:
        config: as it was asked for; of a run that exists, as that is stored, with what may change changed.
        paths: of the run.
        state: how far it got.
        notes: what a person should know before it goes on, one line each.
    """

    config: RunConfig
    paths: RunPaths
    state: State
    notes: tuple[str, ...] = ()


def resolve_run(config: RunConfig) -> Resolved:
    """How far the run of this name got, and with which configuration it goes on.

    A run that exists goes on with the configuration stored with it. Of what the command asks otherwise, `parallel`,
    `run` and `training.steps` may differ; anything else is another method.

    Args:
        config: as the command asks; only what it names is compared, not what has the value of a default.

    Raises:
        InputError: the name belongs to a run of another method, or a checkpoint there does.
    """
    paths = _existing(config) or RunPaths.of(config)
    if not paths.identity.is_file():
        _check_checkpoints({config.method_sha256}, paths)
        return Resolved(config, paths, "new")
    stored, _ = read_run(paths.root)
    owner = str(read_json(paths.identity)["method_sha256"])
    merged = go_on_with(stored, config, f"({owner[:8]}, this is {config.method_sha256[:8]}) in {paths.root}")
    run = merged.run.model_copy(update={"name": paths.root.name})
    merged = merged.model_copy(update={"run": run})
    _check_checkpoints({owner, merged.method_sha256}, paths)
    state: State = "done" if is_done(merged, paths) else "resumable"
    return Resolved(merged, paths, state, tuple(_changed_defaults(config, stored, paths).values()))


def _existing(config: RunConfig) -> RunPaths | None:
    """Where the run is that this command, without a name, started when some default was another one."""
    if config.run.name != name_by_digest(config) or RunPaths.of(config).identity.is_file():
        return None
    for earlier in history.under_earlier_defaults(config):
        run = earlier.run.model_copy(update={"name": name_by_digest(earlier)})
        paths = RunPaths.of(earlier.model_copy(update={"run": run}))
        if paths.identity.is_file():
            return paths
    return None


def go_on_with(stored: RunConfig, config: RunConfig, where: str) -> RunConfig:
    """The stored configuration, with what the command names of `parallel`, `run` and `training.steps`.

    Raises:
        InputError: the command names another method; `where` goes into the message.
    """
    before, named = stored.model_dump(mode="json"), history.asked(config)
    others = list(_differences(before, {name: value for name, value in named.items() if name not in NOT_METHOD}))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"run.name = {config.run.name!r}: taken by another method {where}: {others[0]}{more}; allowed: another "
            "name, or none to have one made from the method"
        )
    merged = {**before, **{name: {**before[name], **named.get(name, {})} for name in NOT_METHOD}}
    merged["training"]["steps"] = named.get("training", {}).get("steps", before["training"]["steps"])
    return RunConfig.model_validate_json(canonical(merged))


def _differences(before: dict[str, Any], named: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings named that have another value in `before`, in words."""
    for name, value in named.items():
        path, there = f"{prefix}{name}", before.get(name)
        if path == "training.steps" or value == there:
            continue
        if isinstance(value, dict) and isinstance(there, dict):
            yield from _differences(there, value, f"{path}.")
        else:
            yield f"{path} is {json.dumps(there)} there and {json.dumps(value)} here"


def _changed_defaults(config: RunConfig, stored: RunConfig, paths: RunPaths) -> dict[str, str]:
    """By path, what to say of defaults that are others now; only what was not said before."""
    told: list[str] = read_json(paths.identity).get("told", [])
    values, today = stored.model_dump(mode="json"), config.model_dump(mode="json")
    said: dict[str, str] = {}
    for change in history.CHANGED_DEFAULTS:
        if change.path in told or not history.applies(change, config) or not history.is_named(values, change.path):
            continue
        own, now = history.get(values, change.path), history.get(today, change.path)
        if own != now:
            said[change.path] = (
                f"{change.path} is {json.dumps(now)} by default since {change.since}; this run goes on with its "
                f"{json.dumps(own)}"
            )
    return said


def _check_checkpoints(digests: set[str], paths: RunPaths) -> None:
    """Refuse checkpoints that were put into the run's folder from elsewhere; damaged ones are passed over later."""
    for manifest in sorted(paths.checkpoints.glob("step-*/manifest.json")):
        try:
            owner = read_json(manifest)["method_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if owner not in digests:
            own = " or ".join(digest[:8] for digest in sorted(digests))
            raise InputError(
                f"{manifest.parent}: a checkpoint of another method ({str(owner)[:8]}, this is {own}); allowed: the "
                "run's own, so move it away"
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


def register_name(config: RunConfig, paths: RunPaths) -> None:
    """Tie the run's name to this method, and store the configuration that it goes on with."""
    paths.root.mkdir(parents=True, exist_ok=True)
    values = config.model_dump(mode="json")
    if not paths.identity.exists():
        write_json(paths.identity, {"method_sha256": config.method_sha256, "config": values})
        return
    record = read_json(paths.identity)
    told = record.get("told", [])
    told += [change.path for change in history.CHANGED_DEFAULTS if change.path not in told]
    renewed = {**record, "config": values, **({"told": told} if told else {})}
    if renewed != record:
        write_json(paths.identity, renewed)


def lock_timeout() -> float:
    """How long a command waits for another one that holds what it wants.

    Not at all for a person; a job of the queue may be tried again before its killed predecessor is quite gone.
    """
    return JOB_LOCK_TIMEOUT_S if "DUALVIEW_JOB" in os.environ else 0.0


def locked(paths: RunPaths, lock_timeout_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold the run for this process; the lock goes with the process, however it ends.

    Args:
        paths: of the run.
        lock_timeout_s: how long to wait for another process that holds it.

    Raises:
        BusyError: another process holds it.
        InputError: the folder cannot be made.
    """
    return file_lock(
        paths.lock, f"run.name = {paths.root.name!r}: another process is working on this run", lock_timeout_s
    )
