"""Moves the served alias between the versions of a registered model, with a history for rollback.

All state is in the registry: a version's tags record the gate's decision and its reason; a tag of the model lists the
versions that had the alias, in order. `client` is an MlflowClient everywhere.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from trainer.config.run import CHALLENGER
from trainer.errors import InputError
from trainer.registry.gate import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DECISION, REASON, TIME = "dualview.gate", "dualview.gate_reason", "dualview.gate_time"

HISTORY = TypeAdapter(list[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]])

Decide = Callable[[str | None], Decision]


def decide_alias(client: "MlflowClient", name: str, number: str, alias: str, decide: Decide) -> Decision:
    """Make a new version the challenger, and give it the alias if it passes; an earlier decision is kept.

    Args:
        client: MLflow client of the registry.
        name: name of the registered model.
        number: number of the version.
        alias: the alias at stake.
        decide: called with the number of the version that has the alias, or None; returns the decision.
    """
    tags = client.get_model_version(name, number).tags
    if DECISION in tags:
        return Decision(tags[DECISION] != CHALLENGER, tags.get(REASON, ""))
    client.set_registered_model_alias(name, CHALLENGER, number)
    decision = None
    while decision is None:
        champion = version_of_alias(client, name, alias)
        decision = decide(champion)
        if version_of_alias(client, name, alias) != champion:  # another version got the alias meanwhile
            decision = None
    tag_decision(client, name, number, alias if decision.promoted else CHALLENGER, decision.reason)
    if decision.promoted:
        set_alias(client, name, number, alias)
    return decision


def version_of_alias(client: "MlflowClient", name: str, alias: str) -> str | None:
    """The number of the version that has an alias; None where none has."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else str(number)


def tag_decision(client: "MlflowClient", name: str, number: str, decision: str, reason: str) -> None:
    """Tag a version with a decision and its reason."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for tag, value in ((DECISION, decision), (REASON, reason[:5000]), (TIME, now)):
        client.set_model_version_tag(name, number, tag, value)


def set_alias(client: "MlflowClient", name: str, number: str, alias: str) -> None:
    """Give a version the alias, and add it to the history; it is no challenger any more."""
    past = history(client, name, alias)
    if not past or past[-1] != number:
        _write_history(client, name, alias, [*past, number])
    client.set_registered_model_alias(name, alias, number)
    if version_of_alias(client, name, CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)


def history(client: "MlflowClient", name: str, alias: str) -> list[str]:
    """The numbers of the versions that had the alias, the current one last; a tag that is no history is none."""
    present = version_of_alias(client, name, alias)
    try:
        past = HISTORY.validate_json(client.get_registered_model(name).tags.get(_history_tag(alias), "[]"))
    except ValidationError:
        past = list[str]()
    if present is not None and (not past or past[-1] != present):  # given by hand, in MLflow's own pages
        past.append(present)
    return past


def _write_history(client: "MlflowClient", name: str, alias: str, versions: list[str]) -> None:
    client.set_registered_model_tag(name, _history_tag(alias), json.dumps(versions))


def _history_tag(alias: str) -> str:
    return f"dualview.history.{alias}"


def roll_back(client: "MlflowClient", name: str, alias: str, reason: str) -> tuple[str, str]:
    """Give the alias back to the version that had it before; versions that were deleted are passed over.

    Returns:
        The numbers of the version that has the alias again, and of the version that lost it.

    Raises:
        InputError: no earlier version that had the alias is left.
    """
    past = history(client, name, alias)
    left = _existing(client, name)
    earlier = [at for at, number in enumerate(past[:-1]) if number in left and number != past[-1]]
    if not earlier:
        gone = ", ".join(number for number in past[:-1] if number not in left)
        before = f"none before is left (deleted: {gone})" if gone else "none before"
        raise InputError(
            f"NAME = {name}: {'version ' + past[-1] if past else 'no version'} has been {alias}, and {before}; "
            "allowed: a model that was promoted twice"
        )
    before, lost = past[earlier[-1]], past[-1]
    client.set_registered_model_alias(name, alias, before)
    _write_history(client, name, alias, past[: earlier[-1] + 1])
    if lost in left:
        tag_decision(client, name, lost, "rolled back", f"version {before} is {alias} again: {reason}")
    return before, lost


def _existing(client: "MlflowClient", name: str) -> set[str]:
    """The numbers of the versions that were not deleted."""
    return {str(version.version) for version in client.search_model_versions(f"name = '{name}'")}


@dataclass(frozen=True)
class Version:
    """A registered version, as `python -m trainer.registry list` shows it.

    Attributes:
        number: the version's number.
        aliases: the version's aliases.
        decision: the gate's decision, or one made by hand; empty where there was none.
        reason: the reason for the decision.
        time: UTC time of the decision, ISO 8601.
        metrics: metric name -> value, of the evaluation that the version was registered with.
        problem: why the metrics are not known; empty where they are.
    """

    number: str
    aliases: list[str]
    decision: str
    reason: str
    time: str
    metrics: dict[str, float]
    problem: str = ""


def versions(client: "MlflowClient", name: str, scores: "Callable[[ModelVersion], dict[str, float]]") -> list[Version]:
    """All versions, the newest first.

    Args:
        client: MLflow client of the registry.
        name: name of the registered model.
        scores: the metrics of a version; raises InputError where they are gone.
    """
    aliases: dict[str, Any] = client.get_registered_model(name).aliases
    registered = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda each: -int(each.version))
    return [_described(each, aliases, scores) for each in registered]


def _described(
    version: "ModelVersion", aliases: dict[str, Any], scores: "Callable[[ModelVersion], dict[str, float]]"
) -> Version:
    try:
        metrics, problem = scores(version), ""
    except InputError as error:
        metrics, problem = dict[str, float](), str(error)
    return Version(
        number=str(version.version),
        aliases=sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
        decision=version.tags.get(DECISION, ""),
        reason=version.tags.get(REASON, ""),
        time=version.tags.get(TIME, ""),
        metrics=metrics,
        problem=problem,
    )
