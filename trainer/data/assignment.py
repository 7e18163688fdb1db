"""What the usable images of a source are: their classes, and the split that each is in."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.data.files import NO_SUFFIX, Source, suffix
from trainer.data.labels import raw_labels, resolve_labels
from trainer.data.layout import Layout, LayoutError, file_layout, folder_layout
from trainer.data.listing import HIDDEN, LINK
from trainer.data.split import Members, seeded_split, source_split
from trainer.errors import InputError

OTHER_SPLIT = "of a split that is not used"


@dataclass(frozen=True)
class Assignment:
    """Classes and splits of N usable images.

    Attributes:
        labels: class of each image, int64 [N]; -1 where there are no classes.
        names: names of the classes; empty where they have none.
        members: of each split, which images it has.
        split: whether the split is the source's own or seeded.
        notes: what a user should know of it.
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    members: Members
    split: Literal["source", "seeded"]
    notes: tuple[str, ...]

    @property
    def used(self) -> NDArray[np.int64]:
        """Numbers of the images that are in a split."""
        return np.flatnonzero(np.logical_or.reduce(list(self.members.values())))

    @property
    def unused(self) -> NDArray[np.int64]:
        """Numbers of the images that are in neither split."""
        return np.setdiff1d(np.arange(len(self.labels)), self.used)


def assign(good: pa.Table, source: Source, data: DataConfig) -> Assignment:
    """Assign classes and splits to the usable images of a source.

    Args:
        good: a row for each, with its path, and its label where the source is of Parquet files.
        source: the scanned source.
        data: the settings.

    Raises:
        InputError: labels without classes, or a split that cannot be had.
    """
    paths = good["path"].to_pylist()
    try:
        if source.is_parquet:
            layout = file_layout(paths, data.split == "seeded")
        else:
            layout = folder_layout(paths, data.split == "seeded", source.folders_are_classes)
    except LayoutError as error:
        raise InputError(f"data.source = {data.source!r}: {error}") from None
    notes = [*source.notes, *layout.notes]
    raw = raw_labels(good, source, layout)
    own = source_split(layout, data)
    if own is None:
        if len(set(layout.splits or ())) == 1 and data.split == "auto":
            notes.append(f"there is no split but {(layout.splits or ('',))[0]}: a seeded part of it is held out")
        labels, names = resolve_labels(raw, data, source.class_names)
        members, more = seeded_split(labels, data, names)
        return Assignment(labels, names, members, "seeded", (*notes, *more))
    used = np.logical_or.reduce(list(own.values()))
    labels = np.full(len(raw), -1, dtype=np.int64)
    labels[used], names = resolve_labels(
        [label for label, is_used in zip(raw, used, strict=True) if is_used], data, source.class_names
    )
    return Assignment(labels, names, own, "source", (*notes, *_split_notes(layout, labels, names, own)))


def _split_notes(layout: Layout, labels: NDArray[np.int64], names: tuple[str, ...], members: Members) -> Iterable[str]:
    yield f"the split is the source's own: {layout.held_out} is held out (data.split = seeded: one of ours)"
    for split in sorted(set(layout.splits or ()) - {"train", layout.held_out}):
        yield f"split {split} is not used"
    absent = sorted(set(labels[members["heldout"]]) - set(labels[members["train"]]))
    if absent:
        yield f"held out and never trained on: class {', '.join(names[at] if names else str(at) for at in absent[:5])}"


def left_out_of_splits(good: pa.Table, unused: NDArray[np.int64]) -> pa.Table:
    """Path, row and reason of usable images that are in neither split."""
    rows = good.take(pa.array(unused)).select(["path", "row"])
    return rows.append_column("reason", pa.array([OTHER_SPLIT] * len(rows), pa.string()))


def by_suffix(rows: pa.Table) -> Counter[str]:
    """How many rows there are by the suffix of their paths."""
    return Counter(suffix(path) or NO_SUFFIX for path in rows["path"].to_pylist())


def _kind(path: str, reason: str) -> str:
    if reason.startswith(LINK):
        return "links to folders"
    return reason if reason in (HIDDEN, OTHER_SPLIT) else suffix(path) or NO_SUFFIX


def kinds(used: pa.Table, rejected: pa.Table, left_out: pa.Table) -> dict[str, dict[str, int]]:
    """How many there are of each kind: those used and rejected by suffix, those left out by reason or suffix."""
    counts = {
        "used": by_suffix(used),
        "rejected": by_suffix(rejected),
        "left out": Counter(
            _kind(path, reason)
            for path, reason in zip(left_out["path"].to_pylist(), left_out["reason"].to_pylist(), strict=True)
        ),
    }
    return {
        kind: dict(sorted(found.items(), key=lambda one: (-one[1], one[0]))) for kind, found in counts.items() if found
    }
