"""`dataset.json`, the manifest of a prepared data set. Imports no pyarrow, so that checking settings stays fast."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config.data import DataConfig
from trainer.errors import InputError

SPLITS = ("train", "heldout")
FORMAT_VERSION = 2
FILE = "dataset.json"
MAX_REJECTED = 0.01


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file of a split: its name, rows, size in bytes and SHA-256."""

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
        rejected: number of rejected images, which rejected.parquet lists.
        schema: Arrow type of each column of a shard.
        shards: of each split, in order.
        plan: SHA-256 of everything that the preparation depended on: format, settings and source files.
        location: the s3:// prefix of the shards; None where they are in the same folder as this file.
        format_version: version of the folder's format.
    """

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
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rejected: int = 0
    schema: dict[str, str] = field(default_factory=dict)
    shards: dict[str, tuple[Shard, ...]] = field(default_factory=dict)
    plan: str = ""
    location: str | None = None
    format_version: int = FORMAT_VERSION

    def rows(self, split: str) -> int:
        """Number of images in a split."""
        return self.train if split == "train" else self.heldout

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


def parse(text: str | bytes, where: str) -> DatasetInfo:
    """Parse a `dataset.json`; `where` is its folder, for error messages.

    Raises:
        InputError: it has another format version, or is not a manifest.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        version = values.get("format_version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{where}: {FILE} is not the manifest of a prepared data set: {error}") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where}: {FILE} has format_version = {version!r}; allowed: {FORMAT_VERSION}; prepare it again with "
            "`python -m trainer.data prepare`"
        )
    try:
        shards = {split: tuple(Shard(**shard) for shard in values["shards"][split]) for split in SPLITS}
        counts = {split: tuple(counts) for split, counts in values["class_counts"].items()}
        tuples = {name: tuple(values[name]) for name in ("image_shape", "class_names", "mean", "std")}
        return DatasetInfo(**{**values, **tuples, "class_counts": counts, "shards": shards})
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: {FILE} is incomplete: {error}; prepare it again") from None


def check_agrees(info: DatasetInfo, data: DataConfig) -> None:
    """Refuse settings that contradict those that the source was prepared with.

    Raises:
        InputError: naming the setting and the prepared value.
    """
    channels, *sides = info.image_shape
    prepared = [
        ("heldout_fraction", data.heldout_fraction, info.heldout_fraction),
        ("split_seed", data.split_seed, info.split_seed),
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
