"""Which images are trained on and which are held out: as the source says, or at random from a seed."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.data.layout import Layout
from trainer.errors import InputError

Members = dict[str, NDArray[np.bool_]]
"""Of each split of a prepared data set, which of the source's usable images it has, bool [N]."""


def members_of(heldout: NDArray[np.bool_]) -> Members:
    """The splits of images that are held out or else trained on."""
    return {"train": ~heldout, "heldout": heldout}


def seeded_split(labels: NDArray[np.int64], data: DataConfig, names: Sequence[str] = ()) -> tuple[Members, list[str]]:
    """The seeded split, stratified by label where there are labels; and notes for the user.

    A class of a single image cannot be in both splits: it is trained on.

    Raises:
        InputError: the fraction leaves a split, or a class in a split, without images.
    """
    from sklearn.model_selection import train_test_split

    where = f"data.heldout_fraction = {data.heldout_fraction}"
    rows, notes = np.arange(len(labels)), list[str]()
    stratify = None
    if labels.max(initial=-1) >= 0:
        counts = np.bincount(labels)
        single = np.flatnonzero(counts == 1)
        if len(single):
            rows = np.flatnonzero(counts[labels] > 1)
            named = ", ".join(repr(names[at]) if names else str(at) for at in single[:3])
            more = f" and {len(single) - 3} more" if len(single) > 3 else ""
            notes.append(f"class {named}{more}: a single image, which is trained on; no image of it is held out")
        stratify = labels[rows]
        classes = int((counts > 1).sum())
        held_out = math.ceil(data.heldout_fraction * len(rows))
        if not classes or min(held_out, len(rows) - held_out) < classes:
            raise InputError(
                f"{where}: {len(rows)} images of {classes} classes of two images or more, of which {held_out} would be "
                "held out, cannot have each class in both splits; allowed: more images, another fraction, or "
                "data.label_column = none to leave labels out"
            )
    try:
        _, chosen = train_test_split(
            rows, test_size=data.heldout_fraction, random_state=data.split_seed % 2**32, stratify=stratify
        )
    except ValueError as error:
        raise InputError(f"{where}: {len(labels)} images: {error}") from None
    heldout = np.zeros(len(labels), dtype=bool)
    heldout[chosen] = True
    return members_of(heldout), notes


def source_split(layout: Layout, data: DataConfig) -> Members | None:
    """The split that the source has; None where the split is to be seeded.

    Raises:
        InputError: data.split asks for what the source does not have, or it has parts to hold out and none to train on.
    """
    present = sorted(set(layout.splits or ()))
    if data.split == "seeded" or (data.split == "auto" and len(present) < 2):
        return None
    if layout.splits is None or layout.held_out is None:
        raise InputError(
            f"data.split = {data.split}: data.source = {data.source!r} has {' and '.join(present) or 'no splits'}; "
            "allowed: train and one to hold out (validation or test), or data.split = seeded"
        )
    of = np.array(layout.splits)
    return {"train": of == "train", "heldout": of == layout.held_out}
