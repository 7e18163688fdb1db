"""What `training.init_from` names: the package whose weights a run begins with, and its digest."""

from collections.abc import Callable
from pathlib import Path

from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.files import read_json

Registry = Callable[[str, str, str], str]
"""Name, alias and tracking URI -> the package digest of the version that has the alias."""

ALLOWED = "the folder of a package or of a run that has one, or NAME@alias of the registry"


def with_initial_digest(
    config: RunConfig, run_json: Path | None, storage_uri: str, registry: Registry | None
) -> RunConfig:
    """The configuration with `training.init_sha256`, which the method is named by, filled in.

    A digest that is given is not looked up: whether the package has it is seen when it is used. Nor is one that the run
    of this name has begun with, so that the run goes on when the package is gone, or an alias has moved on.

    Args:
        config: the configuration.
        run_json: the stored configuration of the run of this name; None without a name.
        storage_uri: MLflow's tracking URI.
        registry: looks up a registered model; None where there is no registry to ask.

    Raises:
        InputError: there is no such package, or a digest is given without one.
    """
    reference, given = config.training.init_from, config.training.init_sha256
    if reference is None:
        if given is not None:
            raise InputError(f"training.init_sha256 = {given[:16]}…: training.init_from is null; allowed: {ALLOWED}")
        return config
    digest = given or _begun_with(run_json, reference) or initial_digest(reference, storage_uri, registry)
    training = config.training.model_copy(update={"init_sha256": digest})
    return config.model_copy(update={"training": training})


def _begun_with(run_json: Path | None, reference: str) -> str | None:
    """The digest that a stored configuration has for the same reference; None if there is none."""
    try:
        training: dict[str, str | None] = read_json(run_json)["config"]["training"] if run_json else {}
        return training.get("init_sha256") if training.get("init_from") == reference else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def package_folder(reference: str) -> Path | None:
    """The package's folder, where `reference` names a folder; None where it does not.

    Raises:
        InputError: the folder is neither a package nor a run that has one.
    """
    folder = Path(reference)
    if not folder.is_dir():
        return None
    for place in (folder, folder / "package"):
        if (place / "manifest.json").is_file():
            return place.absolute()
    raise InputError(f"training.init_from = {reference!r}: has no package; allowed: {ALLOWED}")


def split_alias(reference: str) -> tuple[str, str]:
    """Name and alias of NAME@alias.

    Raises:
        InputError: it is of another form.
    """
    name, at, alias = reference.partition("@")
    if not (at and name and alias):
        raise InputError(f"training.init_from = {reference!r}: no such folder; allowed: {ALLOWED}")
    return name, alias


def initial_digest(reference: str, storage_uri: str, registry: Registry | None) -> str:
    """The digest that the package states; whether its files have it is looked at before they are used.

    Raises:
        InputError: there is no such package.
    """
    if (folder := package_folder(reference)) is not None:
        if not reference.startswith("/"):
            raise InputError(f"training.init_from = {reference!r}: allowed: an absolute path, that every node sees")
        try:
            return str(read_json(folder / "manifest.json")["package_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"training.init_from = {reference!r}: not a package: {error}") from None
    name, alias = split_alias(reference)
    if registry is None:
        raise InputError(f"training.init_from = {reference!r}: allowed here: the folder of a package or of a run")
    return registry(name, alias, storage_uri)
