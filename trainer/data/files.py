"""Sources that are many files, and the units that their preparation is cut into: some images, or a Parquet row group.

A unit is named by what it holds, never by who works on it, so what is made of it is the same on any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from trainer.config.data import DataConfig
from trainer.data.columns import class_names, find_columns, label_kind
from trainer.data.decode import SUFFIXES
from trainer.data.manifest import check_no_columns
from trainer.data.store import Store
from trainer.errors import InputError

FILES_PER_UNIT = 512
ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Unit:
    """A part of a source.

    Attributes:
        number: in the order of the source.
        files: by their path in the source; one for Parquet.
        row_group: of a Parquet file; None for images.
        first: number of its first row in the file.
    """

    number: int
    files: tuple[str, ...]
    row_group: int | None = None
    first: int = 0


@dataclass(frozen=True)
class Source:
    """A source of many files as it was found.

    Attributes:
        url: of the folder, the prefix or the one file.
        units: in order.
        files: path, size and time of change of every file, which tell one state of the source from another.
        image_column: of Parquet.
        label_column: of Parquet; None for no labels.
        labels: whether they are integers, texts or, for None, absent.
        class_names: known before anything is read.
    """

    url: str
    units: tuple[Unit, ...]
    files: tuple[tuple[str, int, int], ...]
    image_column: str = ""
    label_column: str | None = None
    labels: Literal["integer", "text"] | None = None
    class_names: tuple[str, ...] = ()


class Row(NamedTuple):
    """One encoded image: its file, its row there (None for a file of its own), its bytes and its label as it is."""

    path: str
    row: int | None
    data: bytes | None
    label: Any

    @property
    def id(self) -> str:
        """Stable name of the image: path in the source, and row."""
        return self.path if self.row is None else f"{self.path}:{self.row}"


def find(data: DataConfig) -> Source:
    """Look a source over: which files, which columns, which classes. Reads no image.

    Raises:
        InputError: nothing there that could be images, or columns that cannot be told.
    """
    store = Store(data.source)
    try:
        found = _listed(store)
        parquet = [pair for pair in found if pair[0].endswith(".parquet")]
        images = [pair for pair in found if pair[0].lower().endswith(SUFFIXES)]
        if parquet and images:
            raise InputError(f"data.source = {data.source!r}: holds both Parquet files and images; allowed: one")
        if parquet:
            return _parquet(store, parquet, data)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"data.source = {data.source!r}: {' '.join(str(error).split())[:300]}") from None
    if not images:
        raise InputError(
            f"data.source = {data.source!r}: no images there; allowed: files that end in {' '.join(SUFFIXES)}, "
            "or in .parquet"
        )
    return _folder(store, images, data)


def _listed(store: Store) -> list[tuple[str, fs.FileInfo]]:
    """The source's files, but for hidden ones; a source that is one file is listed under its own name."""
    own = store.files.get_file_info(store.root)
    if own.type == fs.FileType.File:
        return [(own.base_name, own)]
    return [(path, info) for path, info in store.listing() if not any(part[0] == "." for part in path.split("/"))]


def _stamps(found: list[tuple[str, fs.FileInfo]]) -> tuple[tuple[str, int, int], ...]:
    return tuple((path, info.size or 0, info.mtime_ns or 0) for path, info in found)


def _folder(store: Store, images: list[tuple[str, fs.FileInfo]], data: DataConfig) -> Source:
    check_no_columns(data, "is a folder of images")
    paths = [path for path, _ in images]
    names = sorted({path.split("/")[0] for path in paths if "/" in path})
    beside = [path for path in paths if "/" not in path]
    if names and beside:
        raise InputError(
            f"data.source = {data.source!r}: labels without classes: {beside[0]!r} is in no sub-folder, others are; "
            "allowed: all images in sub-folders, one for each class, or none"
        )
    cut = range(0, len(paths), FILES_PER_UNIT)
    units = tuple(Unit(number, tuple(paths[at : at + FILES_PER_UNIT])) for number, at in enumerate(cut))
    return Source(store.url, units, _stamps(images), labels="text" if names else None, class_names=tuple(names))


def _parquet(store: Store, found: list[tuple[str, fs.FileInfo]], data: DataConfig) -> Source:
    units: list[Unit] = []
    columns: tuple[str, str | None] | None = None
    schema = pa.schema([])
    for path, info in found:
        with store.files.open_input_file(info.path) as opened:
            file = pq.ParquetFile(opened)
            if columns is None:
                schema, columns = file.schema_arrow, find_columns(file.schema_arrow, data)
            for name in filter(None, columns):
                at = file.schema_arrow.get_field_index(name)
                if at < 0 or file.schema_arrow.field(at).type != schema.field(name).type:
                    raise InputError(f"data.source = {data.source!r}: {path} has no column {name!r} like {found[0][0]}")
            first = 0
            for group in range(file.metadata.num_row_groups):
                units.append(Unit(len(units), (path,), group, first))
                first += file.metadata.row_group(group).num_rows
    assert columns is not None, "there is one file or more"
    image, label = columns
    names = class_names(schema).get(label or "", ())
    kind = None if label is None else label_kind(schema.field(label), data)
    return Source(store.url, tuple(units), _stamps(found), image, label, kind, names)


def read_unit(source: Source, unit: Unit) -> Iterator[list[Row]]:
    """The encoded images of a unit in their order, some at a time.

    Raises:
        OSError: a Parquet file cannot be read; an image file that cannot has no bytes.
        pyarrow.ArrowInvalid: a Parquet file is broken.
    """
    store = Store(source.url)
    return _read_files(store, unit) if unit.row_group is None else _read_row_group(store, source, unit)


def _bytes(column: pa.Array) -> pa.Array:
    """The images of a column; what is null in a struct's place has no bytes."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def _read_files(store: Store, unit: Unit) -> Iterator[list[Row]]:
    for path in unit.files:
        label = path.split("/")[0] if "/" in path else None
        try:
            yield [Row(path, None, store.read(path), label)]
        except (FileNotFoundError, PermissionError):
            yield [Row(path, None, None, label)]


def _read_row_group(store: Store, source: Source, unit: Unit) -> Iterator[list[Row]]:
    (path,) = unit.files
    alone = store.files.get_file_info(store.root).type == fs.FileType.File
    columns = [name for name in (source.image_column, source.label_column) if name]
    row = unit.first
    with store.files.open_input_file(store.path("" if alone else path)) as opened:
        file = pq.ParquetFile(opened)
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[unit.row_group], columns=columns):
            column = batch.column(source.image_column)
            encoded = _bytes(column)
            labels = [None] * len(batch)
            if source.label_column:
                labels = batch.column(source.label_column).to_pylist()
            yield [
                Row(path, row + at, data, label)
                for at, (data, label) in enumerate(zip(encoded.to_pylist(), labels, strict=True))
            ]
            row += len(batch)
