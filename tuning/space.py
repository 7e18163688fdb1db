"""Expands a sweep file to its trials, each a validated run configuration. No torch, no Ray.

All checks of the sweep file happen here, before anything is started or written.
"""

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator
from pydantic_core import to_json

from diffusion.config import Config, Count
from diffusion.config.errors import describe
from trainer.config.initial import Registry
from trainer.config.load import apply_sets, read_yaml, resolve, setting_paths, validate
from trainer.config.run_config import RunConfig, canonical
from trainer.data.sources import check_source
from trainer.errors import InputError

MAX_TRIALS = 1000
NOT_PART_OF_METHOD = ("run", "parallel", "training.steps")
SAME_IN_ALL_TRIALS = ("seed", "data", "evaluation")


class Grid(Config):
    """A varied setting: the values to try, in this order."""

    kind: Literal["grid"] = "grid"
    values: tuple[JsonValue, ...]

    @field_validator("values")
    @classmethod
    def _not_empty_and_distinct(cls, values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        if not values:
            raise ValueError("allowed: one value or more")
        texts = [canonical(value) for value in values]
        duplicate = next((text for text in texts if texts.count(text) > 1), None)
        if duplicate is not None:
            raise ValueError(f"{duplicate} is given twice; allowed: each value once")
        return values


class SweepConfig(Config):
    """A sweep file: a run file (`base`), changes shared by all trials (`set`), and the settings that vary (`space`)."""

    # a run is named NAME-DIGEST with eight digits of the method digest, at most 100 characters in all
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,90}$")]
    base: Annotated[str, Field(min_length=1)]
    set: dict[str, JsonValue] = Field(default={})
    space: Annotated[dict[str, Grid], Field(min_length=1)]
    concurrent_trials: Count = 1


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        settings: value of each varied path.
        config: the resolved configuration of the run.
    """

    settings: dict[str, Any]
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the run: the sweep's name and the first digits of the method digest."""
        return str(self.config.run.name)

    @property
    def label(self) -> str:
        """The settings as text: `schedule=linear weighting=vlb`."""
        return label(self.settings)


def read_sweep(path: Path, sets: list[str], registry: Registry | None = None) -> tuple[SweepConfig, list[Trial]]:
    """Read and validate a sweep file and its trials; `sets` are PATH=VALUE changes of the base.

    `registry` looks up a registered model that `training.init_from` names.

    Raises:
        InputError: a file, a path, a value or a combination of values is invalid.
    """
    try:
        config = _validated(read_yaml(path))
        check_paths(config, sets)
        base = read_yaml(path.parent / config.base, "base:")
        base = _applied(base, [(path, value) for path, value in config.set.items()], "set: ")
        base = apply_sets(base, sets)
        return config, expand(config, base, registry)
    except RecursionError:
        raise InputError(f"--config {path}: a value that contains itself") from None


def check_paths(config: SweepConfig, sets: Iterable[str]) -> None:
    """Refuse paths that a sweep cannot vary, and shared settings that the space would overwrite.

    Raises:
        InputError: naming the path and the reason.
    """
    known = setting_paths()
    for path in config.space:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else "allowed: a dotted path that `python -m trainer --dry-run` shows"
            )
            raise InputError(f"space.{path}: unknown setting; {hint}")
        _check_method(path)
        above = next((other for other in config.space if path.startswith(f"{other}.")), None)
        if above:
            raise InputError(f"space.{path}: is part of {above}, which is varied too; allowed: only one of them")
    given = [("set.", path) for path in config.set] + [("--set ", item.partition("=")[0]) for item in sets]
    for where, path in given:
        varied = next((other for other in config.space if _overlap(path, other)), None)
        if varied:
            raise InputError(
                f"{where}{path}: the sweep varies {varied}; allowed: settings that the sweep does not vary"
            )


def _overlap(path: str, varied: str) -> bool:
    """Whether `path` is varied: varying the kind of a group varies all settings of the group."""
    group = varied.removesuffix(".kind")
    return path == varied or path.startswith(f"{group}.")


def _check_method(path: str) -> None:
    def touches(groups: Sequence[str]) -> bool:
        return any(f"{path}.".startswith(f"{group}.") or group.startswith(f"{path}.") for group in groups)

    if touches(NOT_PART_OF_METHOD):
        raise InputError(f"space.{path}: such settings must not change results; allowed: settings of the method")
    if touches(SAME_IN_ALL_TRIALS):
        raise InputError(
            f"space.{path}: must be the same in all trials, or their scores could not be compared; "
            f"allowed: settings of the method outside {', '.join(SAME_IN_ALL_TRIALS)}"
        )


def expand(config: SweepConfig, base: dict[str, Any], registry: Registry | None = None) -> list[Trial]:
    """The trials of the grid, the last path changing fastest.

    Raises:
        InputError: the base or a combination of values is invalid, or two combinations are the same method.
    """
    checked = validate(base)
    check_source(checked.data)
    if checked.run.name is not None:
        raise InputError(f"run.name = {checked.run.name!r}: trials are named after the sweep; allowed: none in a sweep")
    axes = [grid.values for grid in config.space.values()]
    count = _product(len(values) for values in axes)
    if count > MAX_TRIALS:
        raise InputError(f"space: {count} trials; allowed: at most {MAX_TRIALS}")
    trials: dict[str, Trial] = {}
    for values in itertools.product(*axes):
        trial = _trial(config.name, base, dict(zip(config.space, values, strict=True)), registry)
        same = trials.setdefault(trial.config.method_sha256, trial)
        if same is not trial:
            raise InputError(f"space: {same.label} and {trial.label} are the same method; allowed: each method once")
    return list(trials.values())


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _trial(sweep: str, base: dict[str, Any], settings: dict[str, Any], registry: Registry | None) -> Trial:
    try:
        config = resolve(validate(_applied(base, settings.items(), "")), registry)
    except InputError as error:
        raise InputError(f"trial {label(settings)}: {error}") from None
    name = f"{sweep}-{config.method_sha256[:8]}"
    run = config.run.model_copy(update={"name": name, "register_as": None})
    return Trial(settings, config.model_copy(update={"run": run}))


def _applied(values: dict[str, Any], settings: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """The values with the settings applied as by `--set`; JSON is valid YAML."""
    try:
        return apply_sets(values, [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in settings])
    except InputError as error:
        raise InputError(where + str(error).removeprefix("--set ")) from None


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Shortest distinct names of paths: `schedule` for `process.schedule.kind`, or more parts if two would be equal."""
    paths = list(paths)
    parts = {path: path.removesuffix(".kind").split(".") for path in paths}
    length = 1
    while True:
        names = {path: ".".join(parts[path][-length:]) for path in paths}
        if len(set(names.values())) == len(names) or length > max(map(len, parts.values())):
            return names
        length += 1


def value_text(value: object) -> str:
    """The value of a setting as text: strings as they are, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def label(settings: Mapping[str, Any]) -> str:
    """Settings as text: `schedule=linear weighting=vlb`."""
    names = short_names(settings)
    return " ".join(f"{names[path]}={value_text(value)}" for path, value in settings.items())


def _validated(values: dict[str, Any]) -> SweepConfig:
    try:
        return SweepConfig.model_validate_json(to_json(values))
    except ValidationError as error:
        raise InputError(describe(error, SweepConfig)) from None
    except ValueError as error:
        raise InputError(f"a value that no setting can have: {error}") from None
