"""What the paths of a source say: its splits, and the classes of a folder of images. Pure functions of the paths.

Splits are recognised by the words that the `datasets` library recognises, classes as torchvision's ImageFolder does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
HELD_OUT = ("validation", "test")
"""Splits that can be held out, the one that is preferred first."""


class LayoutError(Exception):
    """The paths contradict each other; the message says how, and what is allowed."""


@dataclass(frozen=True)
class Layout:
    """What the paths of a source's images say.

    Attributes:
        splits: of each image: train, validation or test; None where the source has no splits.
        classes: of each image, its folder's name; None where images have no classes.
        notes: what a user should know of how the paths were read.
    """

    splits: tuple[str, ...] | None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def held_out(self) -> str | None:
        """The split that is held out: validation, or test where there is none; None without a split to train on."""
        present = set(self.splits or ())
        return next((split for split in HELD_OUT if "train" in present and split in present), None)


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key by which numbers in names are numbers: 2 before 10, and img2 before img10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part) for part in parts if part)


def folder_layout(paths: Sequence[str], seeded: bool = False, has_classes: bool = True) -> Layout:
    """The layout of a folder of images.

    Folders are splits where all at the top are named so (train/, val/, test/, ...); below them, or else at the top, a
    folder is a class. A folder that holds everything and only folders, as archives have it, is passed over.

    Args:
        paths: of the images, relative to the source.
        seeded: whether splits are not asked for: those that are recognised are merged.
        has_classes: whether folders below the splits are classes.

    Raises:
        LayoutError: some images are in a folder and others are not, or only some folders are named like splits.
    """
    notes: list[str] = []
    parts = [path.split("/") for path in paths]
    parts = _passed_over(parts, notes)
    tops = {names[0] for names in parts if len(names) > 1}
    words = {top: SPLIT_WORDS[top.lower()] for top in sorted(tops) if top.lower() in SPLIT_WORDS}
    splits = None
    if tops and len(words) == len(tops) and all(len(names) > 1 for names in parts):
        splits = tuple(words[names[0]] for names in parts)
        parts = _passed_over([names[1:] for names in parts], notes)
    elif len(set(words.values())) > 1 and not seeded:
        others = sorted(tops - words.keys()) or [names[0] for names in parts if len(names) == 1]
        raise LayoutError(
            f"{' and '.join(words)} look like splits, {others[0]!r} does not; allowed: data.split = seeded, which "
            "takes each folder as a class, or nothing beside the splits"
        )
    if not has_classes:
        return Layout(splits, notes=tuple(notes))
    used = [True] * len(parts)
    if splits and not seeded:
        held_out = Layout(splits).held_out
        used = [held_out is None or split in ("train", held_out) for split in splits]
    inside = [len(names) > 1 for names, is_used in zip(parts, used, strict=True) if is_used]
    if any(inside) and not all(inside):
        alone = next(path for path, names, one in zip(paths, parts, used, strict=True) if one and len(names) == 1)
        raise LayoutError(
            f"labels without classes: {alone!r} is in no sub-folder, others are; allowed: all images in sub-folders, "
            f"one for each class, or none{', the folder of one split alone' if splits else ''}, or "
            "data.label_column = none"
        )
    classes = tuple(names[0] if len(names) > 1 else "" for names in parts) if any(inside) else None
    return Layout(splits, classes, tuple(notes))


def _passed_over(parts: list[list[str]], notes: list[str]) -> list[list[str]]:
    """The paths without the folders that hold all of them and no image themselves."""
    while parts and all(len(names) > 2 for names in parts) and len({names[0] for names in parts}) == 1:
        if parts[0][0].lower() in SPLIT_WORDS:
            break
        notes.append(f"everything is in {parts[0][0]}/, which is passed over")
        parts = [names[1:] for names in parts]
    return parts


def file_layout(paths: Sequence[str], seeded: bool = False) -> Layout:
    """The splits of Parquet files, by words of their names or else of their folders: train-00000-of-00001.parquet.

    Raises:
        LayoutError: some files are of a split and others are not.
    """
    splits = [_file_split(path) for path in paths]
    if len(set(splits) - {None}) > 1 and None in splits and not seeded:
        other = paths[splits.index(None)]
        named = next(path for path, split in zip(paths, splits, strict=True) if split)
        raise LayoutError(
            f"{named!r} looks like a file of a split, {other!r} does not; allowed: data.split = seeded, which takes "
            "all files as one set, or files of splits alone"
        )
    return Layout(None if None in splits else tuple(split for split in splits if split))


def _file_split(path: str) -> str | None:
    """The split that a file's name, or else the innermost folder that does, names."""
    *folders, name = path.split("/")
    for part in [name.rpartition(".")[0] or name, *reversed(folders)]:
        words = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(words) == 1:
            return words.pop()
    return None
