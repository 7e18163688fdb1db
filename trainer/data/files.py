"""Sources of many files, and their partitions: up to 512 image files, or one Parquet row group.

A partition depends only on the source, so the prepared data set is the same for any number of workers.
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

FILES_PER_PARTITION = 512
ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Partition:
    """A part of a source that one call prepares.

    Attributes:
        number: index in the order of the source.
        files: paths relative to the source; a single one for Parquet.
        row_group: index of the row group in the Parquet file; None for image files.
        first: index of its first row in the Parquet file.
    """

    number: int
    files: tuple[str, ...]
    row_group: int | None = None
    first: int = 0


@dataclass(frozen=True)
class Source:
    """A scanned source of many files.

    Attributes:
        url: of the folder, the S3 prefix or the single file.
        partitions: in the order of the source.
        files: path, size in bytes and modification time in ns of every file, to detect that the source has changed.
        image_column: name of the Parquet image column; empty for image files.
        label_column: name of the Parquet label column; None for no labels.
        labels: type of the labels; None for no labels.
        class_names: names of the classes, where they are known from folders or from the schema.
    """

    url: str
    partitions: tuple[Partition, ...]
    files: tuple[tuple[str, int, int], ...]
    image_column: str = ""
    label_column: str | None = None
    labels: Literal["integer", "text"] | None = None
    class_names: tuple[str, ...] = ()


class Row(NamedTuple):
    """One encoded image: its file, its row in a Parquet file (None for an image file), its bytes, and its raw label."""

    path: str
    row: int | None
    data: bytes | None
    label: Any

    @property
    def id(self) -> str:
        """Stable name of the image: `path` in the source, or `path:row`."""
        return self.path if self.row is None else f"{self.path}:{self.row}"


def scan_files(data: DataConfig) -> Source:
    """Scan a source for its files, columns and classes, without reading any image.

    Raises:
        InputError: it has no images, or its columns cannot be determined.
    """
    store = Store(data.source)
    try:
        entries = _list_entries(store)
        parquet = [pair for pair in entries if pair[0].endswith(".parquet")]
        images = [pair for pair in entries if pair[0].lower().endswith(SUFFIXES)]
        if parquet and images:
            raise InputError(f"data.source = {data.source!r}: holds both Parquet files and images; allowed: one")
        if parquet:
            return _parquet(store, parquet, data)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"data.source = {data.source!r}: {' '.join(str(error).split())[:300]}") from None
    if not images:
        raise InputError(
            f"data.source = {data.source!r}: contains no images; allowed: files that end in {' '.join(SUFFIXES)}, "
            "or in .parquet"
        )
    return _folder(store, images, data)


def _list_entries(store: Store) -> list[tuple[str, fs.FileInfo]]:
    """The source's files except hidden ones; a source that is a single file is listed under its own name."""
    own = store.files.get_file_info(store.root)
    if own.type == fs.FileType.File:
        return [(own.base_name, own)]
    return [(path, info) for path, info in store.listing() if not any(part[0] == "." for part in path.split("/"))]


def _stamps(entries: list[tuple[str, fs.FileInfo]]) -> tuple[tuple[str, int, int], ...]:
    return tuple((path, info.size or 0, info.mtime_ns or 0) for path, info in entries)


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
    cut = range(0, len(paths), FILES_PER_PARTITION)
    partitions = tuple(Partition(number, tuple(paths[at : at + FILES_PER_PARTITION])) for number, at in enumerate(cut))
    return Source(store.url, partitions, _stamps(images), labels="text" if names else None, class_names=tuple(names))


def _parquet(store: Store, entries: list[tuple[str, fs.FileInfo]], data: DataConfig) -> Source:
    partitions: list[Partition] = []
    columns: tuple[str, str | None] | None = None
    schema = pa.schema([])
    for path, info in entries:
        with store.files.open_input_file(info.path) as opened:
            file = pq.ParquetFile(opened)
            if columns is None:
                schema, columns = file.schema_arrow, find_columns(file.schema_arrow, data)
            for name in filter(None, columns):
                at = file.schema_arrow.get_field_index(name)
                if at < 0 or file.schema_arrow.field(at).type != schema.field(name).type:
                    raise InputError(
                        f"data.source = {data.source!r}: {path} has no column {name!r} like {entries[0][0]}"
                    )
            first = 0
            for group in range(file.metadata.num_row_groups):
                partitions.append(Partition(len(partitions), (path,), group, first))
                first += file.metadata.row_group(group).num_rows
    assert columns is not None, "there is one file or more"
    image, label = columns
    names = class_names(schema).get(label or "", ())
    kind = None if label is None else label_kind(schema.field(label), data)
    return Source(store.url, tuple(partitions), _stamps(entries), image, label, kind, names)


def read_partition(source: Source, partition: Partition) -> Iterator[list[Row]]:
    """The encoded images of a partition in order, in batches.

    Raises:
        OSError: a Parquet file cannot be read. (An image file that cannot be read gives a row without bytes.)
        pyarrow.ArrowInvalid: a Parquet file is corrupt.
    """
    store = Store(source.url)
    return _read_files(store, partition) if partition.row_group is None else _read_row_group(store, source, partition)


def _bytes(column: pa.Array) -> pa.Array:
    """The encoded images of a column of binary or of struct<bytes, path>; null structs give null bytes."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def _read_files(store: Store, partition: Partition) -> Iterator[list[Row]]:
    for path in partition.files:
        label = path.split("/")[0] if "/" in path else None
        try:
            yield [Row(path, None, store.read(path), label)]
        except (FileNotFoundError, PermissionError):
            yield [Row(path, None, None, label)]


def _read_row_group(store: Store, source: Source, partition: Partition) -> Iterator[list[Row]]:
    (path,) = partition.files
    alone = store.files.get_file_info(store.root).type == fs.FileType.File
    columns = [name for name in (source.image_column, source.label_column) if name]
    row = partition.first
    with store.files.open_input_file(store.path("" if alone else path)) as opened:
        file = pq.ParquetFile(opened)
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[partition.row_group], columns=columns):
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
