"""Sources of many files, and their partitions: up to 512 files, or one Parquet row group.

A partition depends only on the source, so the prepared data set is the same for any number of workers.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from trainer.config.data import DataConfig
from trainer.data.columns import NO_LABELS, class_names, find_columns, label_kind
from trainer.data.decode import FORMATS, SIGNATURE_BYTES, is_image
from trainer.data.layout import LayoutError, file_layout, folder_layout
from trainer.data.listing import File, Listing, list_source, printable
from trainer.data.manifest import check_no_columns, listed
from trainer.data.metadata import Label, is_metadata, read_metadata
from trainer.data.store import Store
from trainer.errors import InputError
from trainer.runtime.memory import GIB, at_most

FILES_PER_PARTITION = 512
ROWS_PER_BATCH = 256
BATCH_BYTES = GIB // 4  # of a batch, as far as the file tells its size
MAX_BATCH_BYTES = 4 * GIB  # that a batch takes while it is read
MAX_GROUP_BYTES = 12 * GIB  # that the columns of a row group take beside it, as they are in the file
READ_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
IMAGE_SUFFIXES = (
    *READ_SUFFIXES, ".arw", ".cr2", ".dng", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".nef", ".psd",
    ".svg", ".tga",
)  # fmt: skip
"""Names of files that are meant as images whether or not they can be read; others are images if their content is."""
NOT_AN_IMAGE = "not an image"
NO_SUFFIX = "without suffix"


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
        files: every file that is looked at, to detect that the source has changed.
        image_column: name of the Parquet image column; empty for image files.
        label_column: name of the Parquet label column; None for no labels.
        labels: type of a Parquet source's labels; None for no labels, and for image files.
        class_names: names of the classes, where they are known from a Parquet file's schema.
        metadata: labels of image files from metadata files, by printable path; None where those say nothing.
        folders_are_classes: whether folders of image files are their classes.
        left_out: printable path of each file that is not looked at, and why.
        notes: what a user should know of how the source was read.
    """

    url: str
    partitions: tuple[Partition, ...]
    files: tuple[File, ...]
    image_column: str = ""
    label_column: str | None = None
    labels: Literal["integer", "text"] | None = None
    class_names: tuple[str, ...] = ()
    metadata: Mapping[str, Label] | None = None
    folders_are_classes: bool = False
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_parquet(self) -> bool:
        """Whether its images are rows of Parquet files."""
        return bool(self.image_column)


class Row(NamedTuple):
    """One encoded image, or a file that is none.

    Attributes:
        path: printable path of its file in the source.
        row: its row in a Parquet file; None for an image file.
        data: content of the file; None where there is none.
        label: as in the Parquet file, else None.
        problem: why it has no content; empty if it has, or a Parquet file has a null there.
        is_image: whether the file is meant as an image.
    """

    path: str
    row: int | None
    data: bytes | None
    label: Any = None
    problem: str = ""
    is_image: bool = True

    @property
    def id(self) -> str:
        """Stable name of the image: `path` in the source, or `path:row`."""
        return self.path if self.row is None else f"{self.path}:{self.row}"


def scan_files(data: DataConfig, listing: Listing | None = None) -> Source:
    """Scan a source for its columns and splits, without reading any image.

    Args:
        data: the source and its settings.
        listing: of the source's files; None to list them here.

    Raises:
        InputError: it has no files to look at, they contradict each other, or its columns cannot be determined.
    """
    store = Store(data.source)
    where = f"data.source = {data.source!r}"
    try:
        listing = listing or list_source(store)
        parquet = [file for file in listing.files if _is_parquet(file.path, listing.is_file)]
        images = [file.path for file in listing.files if _has_image_suffix(file.path)]
        if parquet and any(suffix(path) in READ_SUFFIXES for path in images):
            raise InputError(f"{where}: holds both Parquet files and images; allowed: one")
        if parquet:
            others = [
                (printable(file.path), NOT_AN_IMAGE)
                for file in listing.files
                if not _is_parquet(file.path, listing.is_file)
            ]
            return _parquet(store, parquet, (*listing.left_out, *others), data)
        if not listing.files:
            hidden = f": all {len(listing.left_out)} files are hidden or cannot be read" if listing.left_out else ""
            raise InputError(f"{where}: contains no images{hidden}; allowed: images, or Parquet files of images")
        return _folder(store, listing.files, images, listing.left_out, data)
    except LayoutError as error:
        raise InputError(f"{where}: {error}") from None
    except (OSError, pa.ArrowInvalid, UnicodeError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())[:300]}") from None


def _is_parquet(path: str, is_alone: bool) -> bool:
    return path.endswith(".parquet") and (is_alone or not is_metadata(path))


def suffix(path: str) -> str:
    """A file name's ending in lower case; empty where it has none."""
    return posixpath.splitext(path)[1].lower()


def _has_image_suffix(path: str) -> bool:
    return suffix(path) in IMAGE_SUFFIXES


def no_images(where: str, paths: Sequence[str]) -> InputError:
    """A source's refusal: none of its files is an image."""
    held = listed(Counter(suffix(path) or NO_SUFFIX for path in paths))
    return InputError(
        f"{where}: contains no images, but {held or 'empty files'}; allowed: {', '.join(FORMATS)}, or Parquet files"
    )


def _folder(
    store: Store, files: Sequence[File], images: Sequence[str], left_out: tuple[tuple[str, str], ...], data: DataConfig
) -> Source:
    metadata = read_metadata(store, [file.path for file in files], data)
    if not metadata.files and data.label_column != NO_LABELS:
        check_no_columns(data, "is a folder of images without metadata")
    has_classes = metadata.labels is None and data.label_column != NO_LABELS
    folder_layout(images, data.split == "seeded", has_classes)  # what is known before any file is read
    known = set(metadata.files)
    looked_at = [file for file in files if file.path not in known]
    cut = range(0, len(looked_at), FILES_PER_PARTITION)
    partitions = tuple(
        Partition(number, tuple(file.path for file in looked_at[at : at + FILES_PER_PARTITION]))
        for number, at in enumerate(cut)
    )
    return Source(
        store.url,
        partitions,
        tuple(files),
        metadata=metadata.labels,
        folders_are_classes=has_classes,
        left_out=left_out,
        notes=metadata.notes,
    )


def _parquet(store: Store, entries: Sequence[File], left_out: tuple[tuple[str, str], ...], data: DataConfig) -> Source:
    partitions: list[Partition] = []
    columns: tuple[str, str | None] | None = None
    schema = pa.schema([])
    names: tuple[str, ...] = ()
    where = f"data.source = {data.source!r}"
    is_alone = _is_file(store)
    for entry in entries:
        with store.files.open_input_file(store.path("" if is_alone else entry.path)) as opened:
            file = pq.ParquetFile(opened)
            if columns is None:
                schema, columns = file.schema_arrow, find_columns(file.schema_arrow, data)
                names = class_names(schema).get(columns[1] or "", ())
            for name in filter(None, columns):
                at = file.schema_arrow.get_field_index(name)
                if at < 0 or file.schema_arrow.field(at).type != schema.field(name).type:
                    raise InputError(f"{where}: {entry.path} has no column {name!r} like {entries[0].path}")
            if (own := class_names(file.schema_arrow).get(columns[1] or "", ())) != names:
                raise InputError(
                    f"{where}: the classes of {columns[1]!r} differ: {_listed(names)} in {entries[0].path}, "
                    f"{_listed(own)} in {entry.path}; allowed: the same names in the same order in all files, or "
                    "data.label_column = none to leave labels out"
                )
            first = 0
            for group in range(file.metadata.num_row_groups):
                partitions.append(Partition(len(partitions), (entry.path,), group, first))
                first += file.metadata.row_group(group).num_rows
    assert columns is not None, "there is one file or more"
    image, label = columns
    file_layout([entry.path for entry in entries], data.split == "seeded")
    kind = None if label is None else label_kind(schema.field(label), data)
    return Source(store.url, tuple(partitions), tuple(entries), image, label, kind, names, left_out=left_out)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "") if names else "no names"


def _is_file(store: Store) -> bool:
    """Whether a source is a single file."""
    return store.files.get_file_info(store.root).type == fs.FileType.File


def read_partition(source: Source, partition: Partition) -> Iterator[list[Row]]:
    """The encoded images of a partition in order, in batches.

    Raises:
        OSError: a Parquet file cannot be read. (An image file that cannot be read gives a row without content.)
        pyarrow.ArrowInvalid: a Parquet file is corrupt.
    """
    store = Store(source.url)
    return _read_files(store, partition) if partition.row_group is None else _read_row_group(store, source, partition)


def _bytes(column: pa.Array) -> pa.Array:
    """The encoded images of a column of binary or of struct<bytes, path>; null structs give null bytes."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def _path_instead(column: pa.Array, row: int) -> str:
    """What is wrong with a row without bytes: that it has a path instead; empty if it has nothing."""
    value = column[row].as_py()
    path = value.get("path") if isinstance(value, dict) else None
    return f"a path without content: {printable(path)!r}" if isinstance(path, str) and path else ""


def _read_files(store: Store, partition: Partition) -> Iterator[list[Row]]:
    for path in partition.files:
        name, meant = printable(path), _has_image_suffix(path)
        try:
            if meant or is_image(store.beginning(path, SIGNATURE_BYTES)):
                yield [Row(name, None, store.read(path), is_image=meant)]
            else:
                yield [Row(name, None, None, problem=NOT_AN_IMAGE, is_image=False)]
        except (FileNotFoundError, PermissionError) as error:
            yield [Row(name, None, None, problem=f"cannot be read: {error.strerror or 'no such file'}", is_image=meant)]
        except ValueError as error:
            yield [Row(name, None, None, problem=str(error), is_image=meant)]


def _read_row_group(store: Store, source: Source, partition: Partition) -> Iterator[list[Row]]:
    (path,) = partition.files
    columns = [name for name in (source.image_column, source.label_column) if name]
    row = partition.first
    with store.files.open_input_file(store.path("" if _is_file(store) else path)) as opened:
        file = pq.ParquetFile(opened)
        group = file.metadata.row_group(partition.row_group)
        each = max(1, group.total_byte_size // max(1, group.num_rows))  # as the file says
        batch_rows = min(ROWS_PER_BATCH, max(1, BATCH_BYTES // each))
        batches = file.iter_batches(batch_rows, row_groups=[partition.row_group], columns=columns)
        whole = min(opened.size(), MAX_GROUP_BYTES)  # Arrow reads a column of the group at once, as it is in the file
        while (rows := _next_rows(batches, source, path, row, whole)) is not None:
            yield rows
            row += len(rows)


def _next_rows(
    batches: Iterator[pa.RecordBatch], source: Source, path: str, first: int, whole: int
) -> list[Row] | None:
    """The rows of the next batch of a group that has up to `whole` bytes in its file; None after the last."""
    try:
        with at_most(MAX_BATCH_BYTES + whole):
            batch = next(batches, None)
            if batch is None:
                return None
            column = batch.column(source.image_column)
            encoded = _bytes(column).to_pylist()
            labels = batch.column(source.label_column).to_pylist() if source.label_column else [None] * len(batch)
    except MemoryError:
        raise pa.ArrowInvalid(
            f"{path}: from row {first} on it expands to more than {MAX_BATCH_BYTES >> 30} GiB, or its row group is "
            f"larger than {MAX_GROUP_BYTES >> 30} GiB; allowed: smaller row groups"
        ) from None
    return [
        Row(path, first + at, data, label, "" if data is not None else _path_instead(column, at))
        for at, (data, label) in enumerate(zip(encoded, labels, strict=True))
    ]
