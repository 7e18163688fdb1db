"""Which version of a registered model has the alias that is served, how it got it, and how it is taken back.

Everything is in the registry: a version's tags say what the gate decided and why, a tag of the model which versions had
the alias, in order. The client is MLflow's, handed in.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.config.run import CHALLENGER
from trainer.errors import InputError
from trainer.registry.gate import Decision

DECISION, REASON, TIME = "dualview.gate", "dualview.gate_reason", "dualview.gate_time"

Decide = Callable[[str | None], Decision]


def admit(client: Any, name: str, number: str, alias: str, decide: Decide) -> Decision:  # noqa: ANN401 - MlflowClient
    """Make a version challenger, and give it the alias if it passes; what was decided once stays decided.

    Args:
        client: of the registry.
        name: of the registered model.
        number: of the version.
        alias: which is at stake.
        decide: told the number of the version that has the alias, or None.
    """
    tags = client.get_model_version(name, number).tags
    if DECISION in tags:
        return Decision(tags[DECISION] != CHALLENGER, tags[REASON])
    client.set_registered_model_alias(name, CHALLENGER, number)
    decision = None
    while decision is None:
        champion = holder(client, name, alias)
        decision = decide(champion)
        if holder(client, name, alias) != champion:  # another version got the alias meanwhile
            decision = None
    note(client, name, number, alias if decision.promoted else CHALLENGER, decision.reason)
    if decision.promoted:
        give(client, name, number, alias)
    return decision


def holder(client: Any, name: str, alias: str) -> str | None:  # noqa: ANN401 - MlflowClient
    """The number of the version that has an alias; None where none has."""
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else str(found)


def note(client: Any, name: str, number: str, decision: str, reason: str) -> None:  # noqa: ANN401 - MlflowClient
    """Tag a version with a decision and its reason."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for tag, value in ((DECISION, decision), (REASON, reason[:5000]), (TIME, now)):
        client.set_model_version_tag(name, number, tag, value)


def give(client: Any, name: str, number: str, alias: str) -> None:  # noqa: ANN401 - MlflowClient
    """Give a version the alias, and add it to the history; it is no challenger any more."""
    past = history(client, name, alias)
    if not past or past[-1] != number:
        _write_history(client, name, alias, [*past, number])
    client.set_registered_model_alias(name, alias, number)
    if holder(client, name, CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)


def history(client: Any, name: str, alias: str) -> list[str]:  # noqa: ANN401 - MlflowClient
    """The versions that had the alias, the present one last."""
    present = holder(client, name, alias)
    past: list[str] = json.loads(client.get_registered_model(name).tags.get(_history_tag(alias), "[]"))
    if present is not None and (not past or past[-1] != present):  # given by hand, in MLflow's own pages
        past.append(present)
    return past


def _write_history(client: Any, name: str, alias: str, versions: list[str]) -> None:  # noqa: ANN401
    client.set_registered_model_tag(name, _history_tag(alias), json.dumps(versions))


def _history_tag(alias: str) -> str:
    return f"dualview.history.{alias}"


def roll_back(client: Any, name: str, alias: str, reason: str) -> tuple[str, str]:  # noqa: ANN401 - MlflowClient
    """Give the alias back to the version that had it before; returns the numbers of that and of the one that had it.

    Raises:
        InputError: there is none.
    """
    past = history(client, name, alias)
    if len(past) < 2:
        raise InputError(
            f"NAME = {name}: {'version ' + past[0] if past else 'no version'} has been {alias}, and none before; "
            "allowed: a model that was promoted twice"
        )
    *_, before, present = past
    client.set_registered_model_alias(name, alias, before)
    _write_history(client, name, alias, past[:-1])
    note(client, name, present, "rolled back", f"version {before} is {alias} again: {reason}")
    return before, present


@dataclass(frozen=True)
class Version:
    """A registered version, for people.

    Attributes:
        number: of the version.
        aliases: that it has.
        decision: of the gate, or by hand; empty where there was none.
        reason: of the decision.
        time: of the decision.
        metrics: of the run that made it.
    """

    number: str
    aliases: list[str]
    decision: str
    reason: str
    time: str
    metrics: dict[str, float]


def versions(client: Any, name: str) -> list[Version]:  # noqa: ANN401 - MlflowClient
    """All versions, the newest first."""
    aliases: dict[str, Any] = client.get_registered_model(name).aliases
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda each: -int(each.version))
    return [
        Version(
            number=str(each.version),
            aliases=sorted(alias for alias, number in aliases.items() if str(number) == str(each.version)),
            decision=each.tags.get(DECISION, ""),
            reason=each.tags.get(REASON, ""),
            time=each.tags.get(TIME, ""),
            metrics=client.get_run(each.run_id).data.metrics if each.run_id else {},
        )
        for each in found
    ]
