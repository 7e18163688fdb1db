"""Defaults that have changed: the earlier values, and how runs made with them are found again.

A run without a name is named by the digest of its method, which includes defaults. When a default changes, an entry
here lets the same command find the run again: the digest is also computed with the earlier defaults.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.config.run_config import RunConfig, canonical


@dataclass(frozen=True)
class ChangedDefault:
    """A setting whose default has changed.

    Attributes:
        path: dotted path of the setting, such as `evaluation.vlb_draws`.
        was: the earlier default, as JSON.
        since: the version that changed the default.
        kind: the kind of the setting's group, where only that kind has the setting.
    """

    path: str
    was: Any
    since: str
    kind: str | None = None


CHANGED_DEFAULTS: tuple[ChangedDefault, ...] = ()
"""The oldest first. An entry is never removed."""


def asked(config: RunConfig) -> dict[str, Any]:
    """The settings that a file or `--set` named, as JSON; all else has the value of a default."""
    return config.model_dump(mode="json", exclude_unset=True)


def get(values: dict[str, Any], path: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value at a dotted path of nested mappings.

    Raises:
        KeyError: there is none.
    """
    *groups, leaf = path.split(".")
    for group in groups:
        values = values[group]
        if not isinstance(values, dict):  # pyright: ignore[reportUnnecessaryIsInstance] - a value, not a group
            raise KeyError(path)
    return values[leaf]


def is_named(values: dict[str, Any], path: str) -> bool:
    """Whether there is a value at a dotted path."""
    try:
        get(values, path)
    except KeyError:
        return False
    return True


def applies(change: ChangedDefault, config: RunConfig) -> bool:
    """Whether a configuration has the setting, and leaves it to its default."""
    values = config.model_dump(mode="json")
    group = change.path.rpartition(".")[0]
    if not is_named(values, change.path) or is_named(asked(config), change.path):
        return False
    return change.kind is None or get(values, f"{group}.kind") == change.kind


def under_earlier_defaults(config: RunConfig) -> Iterator[RunConfig]:
    """The configuration as the same command would have meant it before each change of a default, the latest first."""
    for first in reversed(range(len(CHANGED_DEFAULTS))):
        values = config.model_dump(mode="json")
        changes = [change for change in CHANGED_DEFAULTS[first:] if applies(change, config)]
        for change in reversed(changes):  # so that of two changes of one field the older one stands
            *groups, leaf = change.path.split(".")
            group = get(values, ".".join(groups)) if groups else values
            group[leaf] = change.was
        try:
            yield RunConfig.model_validate_json(canonical(values))
        except ValidationError:  # of a combination that was never allowed
            continue
