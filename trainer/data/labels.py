"""Classes of a source's usable images: numbers from 0, and their names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.data.columns import NO_LABELS
from trainer.data.files import Source
from trainer.data.layout import Layout, natural_order
from trainer.data.metadata import Label
from trainer.errors import InputError


def raw_labels(good: pa.Table, source: Source, layout: Layout) -> list[Label | None]:
    """The label of each usable image as the source has it; None where it has none.

    Those of image files come from metadata files, or else from the folders that the files are in.
    """
    if source.is_parquet:
        return good["text" if source.labels == "text" else "label"].to_pylist()
    if source.metadata is not None:
        return [source.metadata.get(path) for path in good["path"].to_pylist()]
    return list(layout.classes) if layout.classes is not None else [None] * len(good)


def resolve_labels(
    raw: Sequence[Label | None], data: DataConfig, names: tuple[str, ...] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the classes: the labels, int64 [N], -1 for all where there are none, and the classes' names.

    Args:
        raw: integers from 0, or text; None, or a negative number, where an image has no label.
        data: the settings.
        names: names of the classes in order, where they are known; text is ordered naturally where they are not.

    Raises:
        InputError: labels without classes.
    """
    present = {label for label in raw if label is not None}
    is_text = any(isinstance(label, str) for label in present)
    if is_text:
        names = names or tuple(sorted(filter(None, map(str, present)), key=natural_order))
        places = {name: at for at, name in enumerate(names)}
        labels = np.array([places.get(str(label), -1) if label is not None else -1 for label in raw], dtype=np.int64)
    else:
        labels = np.array([-1 if label is None else label for label in raw], dtype=np.int64)
    if not present or (labels == -1).all():
        return np.full(len(raw), -1, dtype=np.int64), ()
    where = f"data.source = {data.source!r}: labels without classes"
    if (labels < 0).any():
        raise InputError(
            f"{where}: {int((labels < 0).sum())} of {len(labels)} images have none; allowed: labels for all, or "
            f"data.label_column = {NO_LABELS} to ignore labels"
        )
    if names:
        if labels.max() >= len(names):
            raise InputError(f"{where}: {int(labels.max())} is the label of an image; allowed: 0 to {len(names) - 1}")
        return labels, names
    numbers = np.unique(labels)
    if len(numbers) != numbers[-1] + 1:
        absent = next(n for n, label in enumerate(numbers) if n != label)
        raise InputError(
            f"{where}: labels go up to {int(numbers[-1])}, but no image has {absent}; allowed: 0 to K - 1, or text"
        )
    return labels, ()
