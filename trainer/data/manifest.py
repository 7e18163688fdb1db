"""What `dataset.json` says of a prepared data set. No pyarrow, so that a run's settings are checked at once."""

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
    """What `dataset.json` says.

    Attributes:
        source: what was prepared.
        fingerprint: SHA-256 over both splits' images and labels, whatever the shards.
        image_shape: (C, H, W).
        train: number of training images.
        heldout: number of held-out images.
        classes: number of classes, 0 where there are no labels.
        class_names: of the classes, where they have names.
        class_counts: images of each class, by split.
        heldout_fraction: of the split.
        split_seed: of the split.
        mean: of the training images' pixels in 0..255, by channel.
        std: their standard deviation, by channel.
        rejected: how many images are in rejected.parquet instead.
        schema: columns of a shard.
        shards: by split, in order.
        plan: SHA-256 of all that the preparation depended on.
        location: the s3:// prefix that holds the shards; None where they are beside this file.
        format_version: of the folder.
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
    """What a `dataset.json` says; `where` is the folder, for errors.

    Raises:
        InputError: another format version, or no data set at all.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        version = values.get("format_version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{where}: {FILE} is not that of a prepared data set: {error}") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where}: {FILE} has format_version = {version!r}; allowed: {FORMAT_VERSION}; prepare it again with "
            "`python -m trainer.data prepare`"
        )
    try:
        shards = {split: tuple(Shard(**shard) for shard in values["shards"][split]) for split in SPLITS}
        counts = {split: tuple(found) for split, found in values["class_counts"].items()}
        tuples = {name: tuple(values[name]) for name in ("image_shape", "class_names", "mean", "std")}
        return DatasetInfo(**{**values, **tuples, "class_counts": counts, "shards": shards})
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: {FILE} is not whole: {error}; prepare it again") from None


def check_agrees(info: DatasetInfo, data: DataConfig) -> None:
    """Refuse settings that would have been those of the preparation.

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
    for name, wanted, found in prepared:
        if wanted != found:
            raise InputError(
                f"data.{name} = {getattr(data, name)}: data.source = {data.source!r} is prepared with {found}; "
                "allowed: that value, or to prepare the source again"
            )
    check_no_columns(data, "is prepared")


def check_no_columns(data: DataConfig, why: str) -> None:
    """Refuse the names of columns where there are none.

    Raises:
        InputError: naming the setting.
    """
    for name in ("image_column", "label_column"):
        if getattr(data, name) is not None:
            raise InputError(
                f"data.{name} = {getattr(data, name)!r}: data.source = {data.source!r} {why}; allowed: null, since "
                "only Parquet has columns to choose"
            )
