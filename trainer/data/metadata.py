"""Labels of a folder of images from the metadata files that lie in it.

Read are `metadata.csv`, `metadata.jsonl` and `metadata.parquet` as the imagefolder loader of the `datasets` library
defines them (a row has `file_name`, relative to the file's own folder, and more columns), and `dataset.json` as NVlabs'
dataset_tool writes it ({"labels": [[path, label], ...]}). Paths are compared with those of the source's own files, so
none of these files can name anything else.
"""

import csv
import io
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config.data import DataConfig
from trainer.data.columns import LABEL_NAMES, NO_LABELS
from trainer.data.listing import printable
from trainer.data.store import Store
from trainer.errors import InputError
from trainer.runtime.memory import GIB, at_most

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NVLABS = "dataset.json"
FILE_NAME = "file_name"
MAX_BYTES = 4 * GIB  # that a table takes while it is read
Label = int | str


@dataclass(frozen=True)
class Metadata:
    """What the metadata files of a source say.

    Attributes:
        files: their paths.
        labels: of each image that they name, by its path; None where they have no labels.
        notes: what a user should know of them.
    """

    files: tuple[str, ...] = ()
    labels: dict[str, Label] | None = None
    notes: tuple[str, ...] = ()


def is_metadata(path: str) -> bool:
    """Whether a file's name is one that metadata have."""
    return posixpath.basename(path) in (*TABLES, NVLABS)


def read_metadata(store: Store, paths: Sequence[str], data: DataConfig) -> Metadata:
    """Read the metadata files among a source's files.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    found = tuple(path for path in paths if is_metadata(path))
    labels: dict[str, Label] = {}
    notes: list[str] = []
    present = {printable(path) for path in paths}
    has_labels = False
    for path in found:
        where = f"data.source = {data.source!r}: {printable(path)}"
        try:
            rows = _rows(posixpath.basename(path), store.read(path), where, data)
        except (ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
            raise InputError(f"{where}: {' '.join(str(error).split())[:200]}") from None
        if rows is None:
            notes.append(f"{printable(path)} has no labels, and is not used")
            continue
        has_labels = True
        folder = posixpath.dirname(path)
        for name, label in rows:
            image = printable(posixpath.normpath(posixpath.join(folder, name)))
            if image not in present:
                raise InputError(f"{where}: names {printable(name)!r}, which is not in the source")
            if labels.setdefault(image, label) != label:
                raise InputError(f"{where}: {printable(name)!r} has two labels, {labels[image]!r} and {label!r}")
        notes.append(f"labels are those of {printable(path)}")
    if has_labels:
        labels = _of_one_kind(labels)
    return Metadata(found, labels if has_labels else None, tuple(notes))


def _table(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    try:
        with at_most(MAX_BYTES):
            return pq.read_table(io.BytesIO(content)).to_pylist()
    except MemoryError:
        raise InputError(f"{where}: expands to more than {MAX_BYTES >> 30} GiB; allowed: labels, not data") from None


def _rows(name: str, content: bytes, where: str, data: DataConfig) -> list[tuple[str, Label]] | None:
    """Path and label of each row; None if the file has no labels."""
    if data.label_column == NO_LABELS:
        return None
    if name == NVLABS:
        return _of_nvlabs(json.loads(content), where)
    if name.endswith(".csv"):
        header, *lines = [*csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))] or [[]]
        rows: list[dict[str, Any]] = [dict(zip(header, line, strict=False)) for line in lines if line]  # what is there
    elif name.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    else:
        rows = _table(content, where)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get(FILE_NAME), str):
            raise InputError(f"{where}: row {number} has no {FILE_NAME}; allowed: a {FILE_NAME} in each row")
    columns = sorted({str(column) for row in rows for column in row} - {FILE_NAME})
    label = _label_column(columns, where, data)
    if label is None:
        return None
    said = [row for row in rows if row.get(label) not in (None, "")]
    return [(row[FILE_NAME], _label(row[label], where, label)) for row in said]


def _label_column(columns: Sequence[str], where: str, data: DataConfig) -> str | None:
    if data.label_column is not None:
        if data.label_column not in (NO_LABELS, *columns):
            raise InputError(
                f"data.label_column = {data.label_column!r}: {where.partition(': ')[2]} has no such column; allowed: "
                f"{', '.join(columns) or NO_LABELS}"
            )
        return None if data.label_column == NO_LABELS else data.label_column
    named = [name for name in LABEL_NAMES if name in columns]
    if len(named) > 1:
        raise InputError(
            f"{where}: several label columns: {', '.join(named)}; allowed: data.label_column to name one, or none"
        )
    return named[0] if named else None


def _of_nvlabs(values: object, where: str) -> list[tuple[str, Label]] | None:
    if not isinstance(values, dict) or "labels" not in values:
        raise InputError(f"{where}: is neither the manifest of a prepared data set nor a list of labels; remove it")
    if values["labels"] is None:
        return None
    pairs = values["labels"]
    if not isinstance(pairs, list):
        raise InputError(f"{where}: labels is no list; allowed: [[path, label], ...]")
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise InputError(f"{where}: labels has another form; allowed: [[path, label], ...]")
    return [(path, _label(label, where, "labels")) for path, label in pairs]


def _label(value: object, where: str, column: str) -> Label:
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise InputError(
        f"{where}: {column} holds {str(value)[:40]!r}; allowed: integers or text for each image, or "
        f"data.label_column = {NO_LABELS} to leave labels out"
    )


def _of_one_kind(labels: dict[str, Label]) -> dict[str, Label]:
    """Integers where all are, as text or as numbers; else text. A negative one means that there is none."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", str(label)) for label in labels.values()):
        return {path: int(label) for path, label in labels.items()}
    return {path: str(label) for path, label in labels.items()}
