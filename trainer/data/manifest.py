"""`dataset.json`, the manifest of a prepared data set. Imports no pyarrow, so that checking settings stays fast."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from diffusion.bounded import read_bounded
from diffusion.config.errors import shown
from diffusion.json_text import json_text
from trainer.config.data import DataConfig
from trainer.errors import InputError

SPLITS = ("train", "heldout")
FORMAT_VERSION = 2
FILE = "dataset.json"
MAX_REJECTED = 0.01
MAX_BYTES = 2**30  # of a manifest
MAX_ROWS, MAX_CLASSES, MAX_SIDE = 2**40, 10**6, 2**16  # of a data set from elsewhere


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file of a split: its name, rows, size in bytes and SHA-256."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`.

    Attributes:
        source: what it was prepared from.
        fingerprint: SHA-256 over both splits' images and labels; independent of how they are divided into shards.
        image_shape: (C, H, W).
        train: number of training images.
        heldout: number of held-out images.
        classes: number of classes, 0 where there are no labels.
        class_names: names of the classes; empty where they have none.
        class_counts: number of images of each class, by split.
        heldout_fraction: fraction of the images that is held out.
        split_seed: seed of the split.
        mean: mean pixel value of the training images by channel, in 0..255.
        std: standard deviation of the same pixel values by channel.
        rejected: number of images that cannot be used; rejected.parquet lists them, and what was left out.
        split: whether the split is the source's own or seeded.
        left_out: number of the source's files that are no images, or hidden, and of images that no split uses.
        duplicates: number of held-out images of which the same pixels are trained on.
        peak: highest value of its images of more than 8 bits a channel; None where there are none.
        files: of a source of files, how many there are of each kind, by suffix or reason.
        notes: what a user should know of how the source was read.
        schema: Arrow type of each column of a shard.
        shards: of each split, in order.
        plan: SHA-256 of everything that the preparation depended on: format, settings and source files.
        location: the s3:// prefix of the shards; None where they are in the same folder as this file.
        format_version: version of the folder's format.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    source: str
    fingerprint: str
    image_shape: tuple[int, int, int]
    train: int
    heldout: int
    classes: int
    class_names: tuple[str, ...] = ()
    class_counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    heldout_fraction: float = 0.2
    split_seed: int = 0
    split: Literal["source", "seeded"] = "seeded"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rejected: int = 0
    left_out: int = 0
    duplicates: int = 0
    peak: int | None = None
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema: dict[str, str] = field(default_factory=dict)
    shards: dict[str, tuple[Shard, ...]] = field(default_factory=dict)
    plan: str = ""
    location: str | None = None
    format_version: int = FORMAT_VERSION

    def rows(self, split: str) -> int:
        """Number of images in a split."""
        return self.train if split == "train" else self.heldout

    @property
    def content(self) -> str:
        """What is kept of the data for others is named by it, and nobody can claim it for other images and labels.

        It is the fingerprint, which is verified of a folder from elsewhere. On S3 the shards are, each by whoever reads
        it, so there it is a digest of theirs.
        """
        if self.location is None:
            return self.fingerprint
        shards = [[shard.sha256 for shard in self.shards[split]] for split in SPLITS]
        return hashlib.sha256(json.dumps([self.image_shape, shards]).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        return json_text(asdict(self), indent=2) + "\n"


INFO = TypeAdapter(DatasetInfo)


def listed(counts: Mapping[str, int], most: int = 6) -> str:
    """Counts as text, the largest first: 60 .heic, 20 .avif."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return ", ".join(f"{counts[name]} {name}" for name in names[:most]) + (", …" if len(names) > most else "")


def read_manifest(file: Path) -> bytes:
    """The text of a `dataset.json`, of this machine.

    Raises:
        OSError: it cannot be read.
        InputError: it is far larger than that of any data set.
    """
    try:
        return read_bounded(file, MAX_BYTES)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def parse_ours(text: str | bytes, where: str) -> DatasetInfo | None:
    """Parse a `dataset.json`; None if it is not ours but a list of labels, as NVlabs' dataset_tool writes it.

    Raises:
        InputError: as `parse`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and "labels" in values and "format_version" not in values:
        return None
    return parse(text, where)


def parse(text: str | bytes, where: str) -> DatasetInfo:
    """Parse a `dataset.json`; `where` is its folder, for error messages.

    Raises:
        InputError: it has another format version, or is not a manifest.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        version = values.get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: {FILE} is not the manifest of a prepared data set: {error}") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where}: {FILE} has format_version = {version!r}; allowed: {FORMAT_VERSION}; prepare it again with "
            "`python -m trainer.data prepare`"
        )
    try:
        files = [shard for split in SPLITS for shard in values["shards"][split]]
        _check_places(values.get("location"), [str(shard["name"]) for shard in files], where)
        _check_values(values, [str(shard["sha256"]) for shard in files], where)
        info = INFO.validate_json(json.dumps(values))
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: {FILE} is incomplete: {error}; prepare it again") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        raise InputError(f"{where}: {FILE} has {name} = {shown(problem['input'])}: {problem['msg']}") from None
    _check_rows(info, where)
    return info


def _check_places(location: object, names: list[str], where: str) -> None:
    """Refuse a manifest, which may come from elsewhere, that names files outside of its folder or its prefix."""
    bad = next((name for name in names if not re.fullmatch(r"[\w-][\w.-]{0,254}", name, re.ASCII)), None)
    if bad is not None:
        raise InputError(f"{where}: {FILE} names a shard {bad!r}; allowed: files of its own folder")
    if location is not None and not str(location).startswith("s3://"):
        raise InputError(f"{where}: {FILE} has location = {location!r}; allowed: none, or an s3:// prefix")


def _check_values(values: Mapping[str, Any], digests: list[str], where: str) -> None:
    """Refuse digests that are none, since files are named by them, and sizes that memory is taken for."""
    hexadecimal = [
        (values["fingerprint"], "{64}"),
        (values.get("plan", ""), "{0,64}"),
        *((each, "{64}") for each in digests),
    ]
    for text, length in hexadecimal:
        if not re.fullmatch(f"[0-9a-f]{length}", str(text)):
            raise InputError(f"{where}: {FILE} has a digest {str(text)[:80]!r}; allowed: SHA-256 in hexadecimal digits")
    counts = [(name, values[name], MAX_ROWS) for name in ("train", "heldout")] + [
        ("classes", values["classes"], MAX_CLASSES)
    ]
    sides = [("image_shape", each, MAX_SIDE) for each in values["image_shape"]]
    for name, value, most in (*counts, *sides):
        if type(value) is not int or not 0 <= value <= most:
            raise InputError(f"{where}: {FILE} has {name} = {str(value)[:80]}; allowed: whole numbers up to {most}")


def _check_rows(info: DatasetInfo, where: str) -> None:
    """Refuse numbers of images that are not those of the shards, or more than shards of their sizes have room for."""
    for split in SPLITS:
        shards = info.shards[split]
        if (rows := sum(shard.rows for shard in shards)) != info.rows(split):
            raise InputError(
                f"{where}: {FILE} has {split} = {info.rows(split)}; allowed: {rows}, the rows of its {len(shards)} "
                "shards"
            )
        for shard in shards:
            most = shard.bytes // max(1, prod(info.image_shape))
            if not 0 < shard.rows <= most:
                raise InputError(
                    f"{where}: {FILE} has {shard.name} with rows = {shard.rows}; allowed: 1 to {most}, for which "
                    f"{shard.bytes} bytes have room"
                )


def check_agrees(info: DatasetInfo, data: DataConfig) -> None:
    """Refuse settings that contradict those that the source was prepared with.

    Raises:
        InputError: naming the setting and the prepared value.
    """
    channels, *sides = info.image_shape
    seeded = [
        ("heldout_fraction", data.heldout_fraction, info.heldout_fraction),
        ("split_seed", data.split_seed, info.split_seed),
    ]
    prepared = [
        ("split", info.split if data.split == "auto" else data.split, info.split),
        *(seeded if info.split == "seeded" else []),
        ("size", [data.size] * 2 if data.size else sides, sides),
        ("channels", channels if data.channels == "auto" else data.channels, channels),
    ]
    for name, wanted, actual in prepared:
        if wanted != actual:
            raise InputError(
                f"data.{name} = {getattr(data, name)}: data.source = {data.source!r} is prepared with {actual}; "
                "allowed: that value, or to prepare the source again"
            )
    check_no_columns(data, "is prepared")
    check_no_white_level(data, "is prepared")


def check_no_white_level(data: DataConfig, why: str) -> None:
    """Refuse a white level for a source that has no use for one; `why` says what the source is.

    Raises:
        InputError: naming the setting.
    """
    if data.white_level is not None:
        raise InputError(
            f"data.white_level = {data.white_level}: data.source = {data.source!r} {why}; allowed: null, since only "
            "image files have more than 8 bits"
        )


def check_no_columns(data: DataConfig, why: str) -> None:
    """Refuse column names for a source without columns; `why` says what the source is.

    Raises:
        InputError: naming the setting.
    """
    for name in ("image_column", "label_column"):
        if getattr(data, name) is not None:
            raise InputError(
                f"data.{name} = {getattr(data, name)!r}: data.source = {data.source!r} {why}; allowed: null, since "
                "only Parquet has columns to choose"
            )
