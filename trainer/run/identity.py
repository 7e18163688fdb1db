"""A run's folder: which configuration its name stands for, how far the run got, and the lock on it."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from diffusion import durable
from diffusion.config.errors import describe
from trainer.config import history
from trainer.config.load import name_by_digest
from trainer.config.run_config import NOT_METHOD, NOT_METHOD_OF_TRAINING, RunConfig, canonical
from trainer.errors import InputError, one_line
from trainer.files import file_lock, is_mapping, read_json, write_json
from trainer.run.manifest import CheckpointError, complete_steps, read_manifest, step_folder
from trainer.run.paths import RunPaths
from trainer.run.summary import RunSummary, summary_from_json

JOB_LOCK_TIMEOUT_S = 60.0
MAX_LISTED = 5  # settings in one line
State = Literal["new", "resumable", "done"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """What a command will do, given what is stored already.

    Attributes:
        config: the configuration to run with: the command's for a new run; for an existing run, the stored one with the
            settings that may change taken from the command.
        paths: the run's files.
        state: how far the run got.
        notes: one line each, for the user to read before the run goes on.
    """

    config: RunConfig
    paths: RunPaths
    state: State
    notes: tuple[str, ...] = ()


def resolve_run(config: RunConfig) -> Resolved:
    """How far the run of this name got, and the configuration to go on with.

    A run that exists goes on with its stored configuration. The command may change `parallel`, `run` and
    `training.steps`; any other difference makes it another method.

    Args:
        config: the command's configuration; only settings that it names are compared, not those left to a default.

    Raises:
        InputError: the name belongs to a run of another method, or a checkpoint there does.
    """
    paths = _existing(config) or RunPaths.of(config)
    record, problem = _record(paths)
    if record is None:
        _check_checkpoints({config.method_sha256}, paths)
        return Resolved(config, paths, "new", (*problem, *_without_effect(config)))
    stored, owner = _configuration(record, paths), str(record["method_sha256"])
    merged = go_on_with(stored, config, f"({owner[:8]}, this is {config.method_sha256[:8]}) in {paths.root}")
    run = merged.run.model_copy(update={"name": paths.root.name})
    merged = merged.model_copy(update={"run": run})
    done = _check_steps(merged, paths, _check_checkpoints({owner, merged.method_sha256}, paths))
    _check_rates(merged, stored, done)
    state: State = "done" if is_done(merged, paths) else "resumable"
    return Resolved(merged, paths, state, (*problem, *_notes(config, stored, paths)))


def _without_effect(config: RunConfig) -> Iterator[str]:
    """What the command names and what changes nothing."""
    named = history.asked(config).get("objective", {})
    if "label_dropout" in named and not config.network.classes:
        yield "objective.label_dropout has no effect: network.classes is 0, so there are no labels to drop"


def _record(paths: RunPaths) -> tuple[Json | None, tuple[str, ...]]:
    """What `run.json` holds: the method's digest, the configuration, the data's fingerprint, and defaults once told.

    One that is damaged or missing is made again from the newest checkpoint.

    Returns:
        The record, None for a run that has not begun; and a note if the file is not as it should be.
    """
    try:
        record = read_json(paths.identity)
        if is_mapping(record) and is_mapping(record.get("config")) and "method_sha256" in record:
            return record, ()
        problem = "is damaged"
    except FileNotFoundError:
        problem = "is missing"
    except (OSError, ValueError):
        problem = "is damaged"
    for step in reversed(complete_steps(paths.checkpoints)):
        try:
            manifest = read_manifest(step_folder(paths.checkpoints, step))
            record = {"method_sha256": manifest["method_sha256"], "config": manifest["config"]}
            fingerprint = manifest.get("data", {}).get("fingerprint")
        except (CheckpointError, KeyError, AttributeError):
            continue
        if fingerprint:
            record["dataset_fingerprint"] = fingerprint
        return record, (f"{paths.identity} {problem}; it is made again from the checkpoint of step {step}",)
    note = f"{paths.identity} {problem}, and there is no checkpoint to make it from; it is made from this command"
    return None, (note,) if problem == "is damaged" else ()


def _configuration(record: Json, paths: RunPaths) -> RunConfig:
    try:
        return RunConfig.model_validate_json(json.dumps(record["config"]))
    except ValueError as error:
        raise InputError(f"{paths.root}: not the folder of a run of this version: {one_line(error)}") from None


def _existing(config: RunConfig) -> RunPaths | None:
    """The run that this command, without a name, started when some default was different; None if there is none."""
    if config.run.name != name_by_digest(config) or RunPaths.of(config).identity.is_file():
        return None
    for earlier in history.under_earlier_defaults(config):
        run = earlier.run.model_copy(update={"name": name_by_digest(earlier)})
        paths = RunPaths.of(earlier.model_copy(update={"run": run}))
        if paths.identity.is_file():
            return paths
    return None


def go_on_with(stored: RunConfig, config: RunConfig, where: str) -> RunConfig:
    """The stored configuration, with `parallel`, `run` and `training.steps` changed to what the command names.

    Raises:
        InputError: the command names another method; `where` goes into the message.
    """
    before, named = stored.model_dump(mode="json"), history.asked(config)
    others = list(_differences(before, named))
    if others:
        path, there, here = others[0]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"run.name = {config.run.name!r}: taken by another method {where}: {path} is {json.dumps(there)} there and "
            f"{json.dumps(here)} here{more}; allowed: another name, or none to have one made from the method"
        )
    merged = {**before, **{name: {**before[name], **named.get(name, {})} for name in NOT_METHOD}}
    merged["training"]["steps"] = named.get("training", {}).get("steps", before["training"]["steps"])
    try:
        return RunConfig.model_validate_json(canonical(merged))
    except ValidationError as error:  # what is asked does not fit what is stored
        raise InputError(f"run.name = {config.run.name!r}: {describe(error, RunConfig)}") from None


NOT_METHOD_PATHS = tuple(f"training.{name}" for name in NOT_METHOD_OF_TRAINING)
Difference = tuple[str, Any, Any]
"""A setting's path, and its value there and here."""


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> Iterator[Difference]:
    """The settings of the method in `here` that have another value in `there`."""
    for name, value in here.items():
        path, stored = f"{prefix}{name}", there.get(name)
        if path in NOT_METHOD or path in NOT_METHOD_PATHS or value == stored:
            continue
        if is_mapping(value) and is_mapping(stored):
            yield from _differences(stored, value, f"{path}.")
        else:
            yield path, stored, value


def _notes(config: RunConfig, stored: RunConfig, paths: RunPaths) -> Iterator[str]:
    """What to say of a run that goes on with values that the command does not name."""
    changed = _changed_defaults(config, stored, paths)
    yield from changed.values()
    if paths.summary.is_file() and read_summary(paths) is None:
        yield f"{paths.summary} is damaged; the model is evaluated again"
    own = _differences(stored.model_dump(mode="json"), config.model_dump(mode="json"))
    history_paths = {change.path for change in history.CHANGED_DEFAULTS}
    kept = [f"{path} = {json.dumps(there)}" for path, there, _ in own if path not in history_paths]
    if kept:
        more = f" and {len(kept) - MAX_LISTED} more" if len(kept) > MAX_LISTED else ""
        yield f"goes on with settings of its own that this command does not name: {', '.join(kept[:MAX_LISTED])}{more}"


def _changed_defaults(config: RunConfig, stored: RunConfig, paths: RunPaths) -> dict[str, str]:
    """Notes, by the setting's path, on defaults that changed since the run began; each note is given once."""
    already_noted: list[str] = (_record(paths)[0] or {}).get("told", [])
    values, today = stored.model_dump(mode="json"), config.model_dump(mode="json")
    notes: dict[str, str] = {}
    for change in history.CHANGED_DEFAULTS:
        if change.path in already_noted:
            continue
        if not history.applies(change, config) or not history.is_named(values, change.path):
            continue
        own, now = history.get(values, change.path), history.get(today, change.path)
        if own != now:
            notes[change.path] = (
                f"{change.path} is {json.dumps(now)} by default since {change.since}; this run goes on with its "
                f"{json.dumps(own)}"
            )
    return notes


def _check_steps(config: RunConfig, paths: RunPaths, newest: int) -> int:
    """Refuse to train for fewer steps than are done: their weights are not kept.

    Args:
        config: the configuration to go on with.
        paths: the run's files.
        newest: step of the newest checkpoint.

    Returns:
        How many are done.
    """
    summary = read_summary(paths)
    done = max(newest, summary.step if summary else 0)
    if config.training.steps < done:
        raise InputError(
            f"training.steps = {config.training.steps}: {paths.root.name} has trained {done} steps already; allowed: "
            f"{done} or more, or another run (--set run.name=…)"
        )
    return done


def _check_rates(config: RunConfig, stored: RunConfig, done: int) -> None:
    """Refuse another number of steps where the steps that are done would have had other learning rates.

    Args:
        config: the configuration to go on with.
        stored: the one that the steps were done with.
        done: how many.
    """
    before, steps = stored.training.steps, config.training.steps
    if before == steps:
        return
    rate = config.optim.learning_rate
    other = next((step for step in range(1, done + 1) if rate(step, steps) != rate(step, before)), None)
    if other is not None:
        raise InputError(
            f"training.steps = {steps}: with optim.schedule.kind = {config.optim.schedule.kind} the steps already "
            f"trained, from step {other} on, would have had a different learning rate; allowed: {before}, another run "
            "(--set run.name=…), or, for a new run, a schedule that can be lengthened: constant, inverse_sqrt, or wsd "
            "before its decay"
        )


def _check_checkpoints(digests: set[str], paths: RunPaths) -> int:
    """Refuse checkpoints of another method in the run's folder; returns the newest step, damaged ones left out."""
    newest = 0
    for step in complete_steps(paths.checkpoints):
        folder = step_folder(paths.checkpoints, step)
        try:
            owner = read_manifest(folder)["method_sha256"]
        except (CheckpointError, KeyError):
            continue
        if owner not in digests:
            own = " or ".join(digest[:8] for digest in sorted(digests))
            raise InputError(
                f"{folder}: a checkpoint of another method ({str(owner)[:8]}, this is {own}); allowed: the run's own, "
                "so move it away"
            )
        newest = step
    return newest


def read_run(folder: Path) -> tuple[RunConfig, RunPaths]:
    """The stored configuration and the files of a run.

    Raises:
        InputError: the folder is not a run's folder.
    """
    paths = RunPaths(folder)
    record, _ = _record(paths)
    if record is None:
        raise InputError(f"{folder}: not the folder of a run of this version: {paths.identity.name} cannot be read")
    return _configuration(record, paths), paths


def is_done(config: RunConfig, paths: RunPaths) -> bool:
    """Whether the run has results for all its steps, recorded in MLflow and, where asked for, registered."""
    summary = read_summary(paths)
    if summary is None:
        return False
    registration, name = summary.registration, config.run.register_as
    alias = None if registration.gate is None else registration.gate.alias
    registered = name is None or (registration.registered_model, alias) == (name, config.run.alias)
    return summary.step >= config.training.steps and registration.recorded and registered


def read_summary(paths: RunPaths) -> RunSummary | None:
    """The summary of a finished run; None while it has none, or where it cannot be read: it is evaluated again."""
    try:
        return summary_from_json(read_json(paths.summary))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def register_name(
    config: RunConfig, paths: RunPaths, dataset_fingerprint: str, class_names: Sequence[str] = ()
) -> None:
    """Tie the run's name to this method and these data, and store the configuration that the run goes on with."""
    durable.make_folder(paths.root)
    values = config.model_dump(mode="json")
    data = {"dataset_fingerprint": dataset_fingerprint} | ({"class_names": list(class_names)} if class_names else {})
    record, problem = _record(paths)
    record = record or {"method_sha256": config.method_sha256}
    noted = record.get("told", [])
    noted += [change.path for change in history.CHANGED_DEFAULTS if change.path not in noted]
    updated = {**record, "config": values, **data, **({"told": noted} if noted else {})}
    if updated != record or problem or not paths.identity.is_file():
        write_json(paths.identity, updated)


def class_names(paths: RunPaths) -> tuple[str, ...]:
    """Names of the classes that a run is trained on; empty where they have none, or the run does not say."""
    return tuple((_record(paths)[0] or {}).get("class_names", ()))


def check_dataset(config: RunConfig, paths: RunPaths, dataset_fingerprint: str) -> str | None:
    """Refuse to go on with other data than the run was begun with.

    Args:
        config: the run's configuration.
        paths: the run's files.
        dataset_fingerprint: of the data as they are now.

    Returns:
        A note for the user where the run, made by an earlier version, does not say which data it was begun with.

    Raises:
        InputError: the data changed since.
    """
    if _record(paths)[0] is None:
        return None
    begun = trained_on(paths)
    if begun is None:
        return (
            f"it does not say which data it was begun with, and goes on with those of now ({dataset_fingerprint[:8]}); "
            "from now on it refuses others"
        )
    if begun != dataset_fingerprint:
        raise InputError(
            f"data.source = {config.data.source!r}: not the data that {paths.root.name!r} was begun with: their "
            f"fingerprint was {begun[:16]} and is {dataset_fingerprint[:16]}; allowed: the data as they were, or "
            "another run for these (--set run.name=…)"
        )
    return None


def trained_on(paths: RunPaths) -> str | None:
    """Fingerprint of the data that a run was begun with; None if it has not begun or does not say."""
    if fingerprint := (_record(paths)[0] or {}).get("dataset_fingerprint"):
        return str(fingerprint)
    summary = read_summary(paths)
    return summary.dataset_fingerprint if summary else None


def lock_timeout() -> float:
    """Seconds that a command waits for a lock which another process holds.

    0 for a person's command; a queued job may be restarted before its killed predecessor has ended.
    """
    return JOB_LOCK_TIMEOUT_S if "DUALVIEW_JOB" in os.environ else 0.0


def locked(
    paths: RunPaths, lock_timeout_s: float = 0.0, waiting: Callable[[], None] = lambda: None
) -> AbstractContextManager[None]:
    """Hold the run's lock in this process; the lock is released when the process ends, however it ends.

    Args:
        paths: the run's files.
        lock_timeout_s: seconds to wait for another process that holds the lock.
        waiting: called in every turn of the wait; may raise to end it.

    Raises:
        BusyError: another process holds the lock.
        InputError: the folder cannot be created.
    """
    return file_lock(
        paths.lock, f"run.name = {paths.root.name!r}: another process is working on this run", lock_timeout_s, waiting
    )
