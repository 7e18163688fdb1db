"""Names, places and intervals: `run.*`, which changes nothing about the method."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator, model_validator

from diffusion.config import (
    Config,
    Count,
    Later,
    Positive,
)
from trainer.config.fields import Alias, Slug

CHALLENGER = "challenger"


class GateConfig(Config):
    """What a new version of a registered model has to show before it gets `run.alias`.

    It must beat the version that has the alias by `metric`, beyond `sigmas` standard errors of the difference, and its
    three likelihoods must be within `likelihood_gap` bits/dim of each other.
    """

    metric: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "vlb_bpd"
    sigmas: Positive = 2.0
    likelihood_gap: Positive = 1.0


Keep = Literal["all", "latest", "package"]


class RunSettings(Config):
    """Names, places and intervals; null means the default that `python -m trainer --dry-run` shows.

    `evaluate_every` so many steps a checkpoint is evaluated while training goes on; null: the last step alone.

    Where no step ends for `hang_medians` times a step's median duration, and for `hang_floor` seconds, the run writes
    what every rank is doing to its folder and ends with exit code 75, to be tried again.

    `keep` is what stays of a run that is done and recorded: `all`; `latest`, the newest checkpoint, from which it can
    be lengthened, without EMA snapshots; or `package`, with the results, and no checkpoint.
    """

    experiment: Slug = "digits"
    name: Slug | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    register_as: Slug | None = None
    alias: Alias = "champion"
    gate: GateConfig = GateConfig()
    checkpoint_every: Count = 250
    keep_checkpoints: Count = 2
    evaluate_every: Count | None = None
    log_every: Count = 25
    keep: Annotated[Keep, Later("0.2")] = "all"
    hang_medians: Annotated[Positive, Later("0.2")] = 20.0
    hang_floor: Annotated[Positive, Later("0.2")] = 300.0

    @model_validator(mode="after")
    def _evaluates_checkpoints(self) -> "RunSettings":
        if self.evaluate_every is not None and self.evaluate_every % self.checkpoint_every:
            raise ValueError(
                f"evaluate_every = {self.evaluate_every}: checkpoints are what is evaluated; allowed: a multiple of "
                f"checkpoint_every = {self.checkpoint_every}, or null for the last step alone"
            )
        return self

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError(
                "must be an absolute path that every node sees (a submitted job's working directory is temporary)"
            )
        return value

    @field_validator("alias")
    @classmethod
    def _not_a_version(cls, value: str) -> str:
        if value == "latest" or re.fullmatch(r"v\d+", value):
            raise ValueError("MLflow keeps `latest` and `v1`, `v2`, … for itself; allowed: another alias")
        if value == CHALLENGER:
            raise ValueError(f"every new version is {CHALLENGER}; allowed: the alias of those that pass the gate")
        return value

    @field_validator("experiment")
    @classmethod
    def _not_a_folder_of_ours(cls, value: str) -> str:
        if value in ("datasets", "fetched", "mlflow-artifacts", "references", "sweeps"):
            raise ValueError("is the name of another folder in run.storage; allowed: another name")
        return value

    @field_validator("tracking_uri")
    @classmethod
    def _well_formed(cls, value: str | None) -> str | None:
        if value is not None:
            check_tracking_uri(value)
        return value


TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def sqlite_url(file: Path | str) -> str:
    """The URL of a database file at an absolute path, quoted where a URL's own characters are in the path."""
    return f"sqlite:///{quote(str(file), safe=PLAIN_IN_PATHS)}"


PLAIN_IN_PATHS = "/:@!$&'()*+,;=~"
"""Characters of paths that need no quoting in a URL (RFC 3986, section 3.3)."""


def check_tracking_uri(uri: str) -> None:
    """Refuse a tracking URI that no server or database could stand behind.

    Raises:
        ValueError: naming what is allowed.
    """
    try:
        parts = urlsplit(uri)
        well_formed = parts.port is None or parts.port > 0
    except ValueError:  # a port that is no number, or out of range
        parts, well_formed = urlsplit(""), False
    dialect, rest = parts.scheme.partition("+")[0], uri.partition("://")[2]
    if parts.password:
        raise ValueError(
            "holds a password, which would be recorded; allowed: MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD for a server, the database client's own password file for a database"
        )
    well_formed &= dialect in TRACKING_SCHEMES and bool(rest) and not re.search(r"\s", uri)
    if not well_formed or (dialect in ("http", "https") and not parts.hostname):
        raise ValueError(
            "not a tracking URI; allowed: http(s)://host[:port], or a database URL "
            f"({', '.join(TRACKING_SCHEMES[2:])}://…), with a space in it as %20"
        )
