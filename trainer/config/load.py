"""From a YAML file and `--set` to a validated RunConfig."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from diffusion.bounded import read_bounded
from diffusion.config.errors import describe, masked, models_of, refuse_secret
from trainer.config.initial import Registry, with_initial_digest
from trainer.config.run import check_tracking_uri, sqlite_url
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.files import is_mapping

MAX_BYTES, MAX_NODES = 2**24, 100_000  # of a YAML file


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, reading 1e-3 as the number that everyone means and refusing a key given twice."""

    composed = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        counts = Counter(key.value for key in scalars if key.tag != "tag:yaml.org,2002:merge")
        twice = next((key for key, count in counts.items() if count > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401 - any YAML value
        """A value; a tag or a date that its text does not fit is an error of the file's."""
        try:
            return cast("Any", super()).construct_object(node, deep)  # PyYAML has few type hints
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            problem = f"{str(node.value)[:100]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node, unless there are too many, which would take memory before they are counted with their aliases."""
        self.composed += 1
        if self.composed > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values; allowed: at most {MAX_NODES}")
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        """The document, once it is known to be no larger than MAX_NODES with its aliases written out."""
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType] - PyYAML has few type hints
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


def _check_size(root: yaml.Node) -> None:
    """Raise YAMLError where a few lines of aliases would stand for a great many values, or for themselves."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise yaml.YAMLError("a value that contains itself")
        if id(node) not in sizes:
            sizes[id(node)] = 1 + sum(size(part, above | {id(node)}) for part in _parts(node))
        return sizes[id(node)]

    if (total := size(root, frozenset())) > MAX_NODES:
        raise yaml.YAMLError(f"{total} values with its aliases written out; allowed: at most {MAX_NODES}")


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        return [part for pair in pairs for part in pair]
    return cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else []


def load_config(path: Path, sets: list[str], registry: Registry | None = None) -> RunConfig:
    """Read a run file, apply `--set`, validate, and fill in the places that depend on this machine.

    Args:
        path: of the file.
        sets: overrides, PATH=VALUE each.
        registry: looks up a registered model that `training.init_from` names.

    Raises:
        InputError: anything wrong with the file, an override or a value.
    """
    try:
        return resolve(validate(apply_sets(read_yaml(path), sets)), registry)
    except RecursionError:
        raise InputError(f"--config {path}: a value that contains itself") from None


def read_yaml(path: Path, named: str = "--config") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. `named` is what errors call the file."""
    try:
        values: object = yaml.load(read_bounded(path, MAX_BYTES).decode(), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"{named} {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{named} {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not is_mapping(values):
        raise InputError(f"{named} {path}: a mapping of settings is wanted, not a {type(values).__name__}")
    return values


def apply_sets(values: dict[str, Any], sets: list[str]) -> dict[str, Any]:
    """A copy of values with each `dotted.path=value` applied.

    `*.kind` goes first, and a new kind replaces its whole subtree by that kind's defaults; then groups, then their
    parts.
    """
    defaults = RunConfig().model_dump(mode="json")
    result = _copy(values)
    for path, value in sorted(map(_split, sets), key=lambda pair: (pair[0][-1] != "kind", len(pair[0]))):
        *parents, leaf = path
        group = result
        for depth, key in enumerate(parents):
            inner: object = group[key] if group.get(key) is not None else {}
            if not is_mapping(inner):
                where = ".".join(parents[: depth + 1])
                raise InputError(f"--set {'.'.join(path)}: {where} is a value, not a group of settings")
            group[key] = group = inner
        if leaf == "kind" and group.get("kind", _default_kind(defaults, parents)) != value:
            group.clear()
        group[leaf] = _copy(value) if is_mapping(value) else value
    return result


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if is_mapping(value) else value for key, value in values.items()}


def _default_kind(defaults: dict[str, Any], path: list[str]) -> str | None:
    """The kind that a group has by default; None for a group without kinds, or one that no default has."""
    for key in path:
        inner = defaults.get(key)
        if not is_mapping(inner):
            return None
        defaults = inner
    return defaults.get("kind")


def _with_kinds(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A copy in which a group that names no kind has the default one; below another kind, defaults mean nothing."""
    if values.get("kind", defaults.get("kind")) != defaults.get("kind"):
        defaults = {}
    filled = {"kind": defaults["kind"]} if "kind" in defaults else {}
    for key, value in values.items():
        below = defaults.get(key)
        filled[key] = _with_kinds(value, below if is_mapping(below) else {}) if is_mapping(value) else value
    return filled


def _split(item: str) -> tuple[list[str], Any]:
    path, separator, text = item.partition("=")
    if not separator or not all(path.split(".")):
        raise InputError(f"--set {item!r}: allowed: dotted.path=value")
    try:
        return path.split("."), yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--set {path}: {text!r} is not a YAML value") from error


def validate(values: dict[str, Any]) -> RunConfig:
    """A RunConfig from plain values; a group that names no kind has the default one.

    Raises:
        InputError: the first problem, as `field = value: what is allowed`.
    """
    try:
        return RunConfig.model_validate_json(to_json(_with_kinds(values, RunConfig().model_dump(mode="json"))))
    except ValidationError as error:
        raise InputError(describe(error, RunConfig)) from None
    except ValueError as error:
        raise InputError(f"a value that no setting can be: {error}") from None


def resolve(config: RunConfig, registry: Registry | None = None) -> RunConfig:
    """Fill the null settings of `run`: storage, tracking URI and name; and the digest of what training begins with."""
    storage = config.run.storage or str(default_storage())
    uri = tracking_uri(config.run.tracking_uri, storage)
    run_json = Path(storage, config.run.experiment, config.run.name, "run.json") if config.run.name else None
    config = with_initial_digest(config, run_json, uri, registry)
    name = config.run.name or name_by_digest(config)
    run = config.run.model_copy(update={"storage": storage, "tracking_uri": uri, "name": name})
    return config.model_copy(update={"run": run})


def name_by_digest(config: RunConfig) -> str:
    """The name of a run that is given none."""
    return f"{config.run.experiment[:91]}-{config.method_sha256[:8]}"


def default_storage() -> Path:
    """DUALVIEW_STORAGE, or a folder in the home.

    Raises:
        InputError: it is no absolute path.
    """
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    if not storage.startswith("/"):
        raise InputError(f"DUALVIEW_STORAGE = {storage!r}: must be an absolute path that every node sees")
    return Path(storage)


def tracking_uri(given: str | None, storage: Path | str) -> str:
    """What is given, MLFLOW_TRACKING_URI, or the local database in the storage.

    Raises:
        InputError: no server or database could stand behind it.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(f"{storage}/mlflow.db")
    try:
        check_tracking_uri(uri)
        refuse_secret(uri)
    except ValueError as error:
        source = "tracking URI" if given else "MLFLOW_TRACKING_URI"
        raise InputError(f"{source} = {masked(uri)!r}: {error}") from None
    return uri


def setting_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """The dotted paths of all settings and of the groups they are in, of every kind."""
    paths: dict[str, None] = {}
    for name, field in model.model_fields.items():
        paths[f"{prefix}{name}"] = None
        for part in models_of(field.annotation):
            paths |= dict.fromkeys(setting_paths(part, f"{prefix}{name}."))
    return list(paths)
