"""Intermediate files of a preparation: one part for each partition, from which an interrupted job resumes.

A part holds, for each row of its partition, either the pixels or the reason why the image was rejected.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from trainer.data.decode import Channels, NotAnImageError, Rejected, Size, decode, upright_size
from trainer.data.files import Partition, Row, Source, read_partition
from trainer.data.store import Store
from trainer.data.writer import Block
from trainer.errors import InputError

LARGEST_LABEL = 2**31 - 1
LONGEST_LABEL = 1000  # characters
MAX_PIXELS_BYTES = 2**26

REJECTED = "rejected"
"""Meant as an image, and cannot be used."""
LEFT_OUT = "left out"
"""Not meant as an image, or not asked for."""
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "path": pa.string(),
        "row": pa.int64(),
        "label": pa.int64(),
        "text": pa.string(),
        "kind": pa.string(),  # REJECTED or LEFT_OUT; null for a usable image
        "reason": pa.string(),
        "peak": pa.int64(),  # highest value of an image of more than 8 bits
        "channels": pa.int64(),  # of the image itself; null where rejected, as the image is
        "image": pa.large_binary(),
    }
)


@dataclass(frozen=True)
class PreparationTask:
    """How the partitions of a source are prepared, and where their parts are written.

    Attributes:
        source: the scanned source without its partitions and files: there may be many, and workers need none of them.
        url: of the destination.
        folder: folder of the parts in the destination.
        size: width and height of the prepared images, in pixels; None until it is known.
        channels: channels of the prepared images.
        white_level: value of white in images of more than 8 bits a channel; None for 65535.
    """

    source: Source
    url: str
    folder: str
    size: Size | None
    channels: Channels
    white_level: int | None = None

    def sizes_name(self, partition: Partition) -> str:
        """File name of the counts of a partition's image sizes."""
        return f"{self.folder}/sizes-{partition.number:05d}.json"

    def images_name(self, partition: Partition) -> str:
        """File name of the part with a partition's images."""
        return f"{self.folder}/images-{partition.number:05d}.arrow"


def count_sizes(task: PreparationTask, partition: Partition) -> None:
    """Count the image sizes in a partition, from headers alone, and write the counts."""
    sizes: Counter[str] = Counter()
    for rows in read_partition(task.source, partition):
        for row in rows:
            if row.problem:
                continue
            try:
                width, height = upright_size(row.data)
                sizes[f"{width}x{height}"] += 1
            except Rejected:  # recorded with its reason when it is decoded
                continue
    Store(task.url).write(task.sizes_name(partition), json.dumps(sizes).encode())


def common_size(task: PreparationTask, partitions: Sequence[Partition]) -> Size | None:
    """The size (width, height) of most images; None where there is no image.

    Raises:
        InputError: no size is that of more than half of them.
    """
    store, sizes = Store(task.url), Counter[str]()
    for partition in partitions:
        sizes.update(json.loads(store.read(task.sizes_name(partition))))
    if not sizes:
        return None
    (name, count), total = sizes.most_common(1)[0], sizes.total()
    if 2 * count <= total:
        shown = ", ".join(f"{name} ({count})" for name, count in sorted(sizes.items(), key=lambda one: -one[1])[:3])
        raise InputError(
            f"data.size = null: the {total} images are of {len(sizes)} sizes, and no size is that of most: {shown}"
            f"{', …' if len(sizes) > 3 else ''}; allowed: the side of a square in pixels (data.size, --size)"
        )
    width, height = map(int, name.split("x"))
    return width, height


def decode_partition(task: PreparationTask, partition: Partition) -> None:
    """Decode the images of a partition, and write its part."""
    assert task.size is not None, "sizes were counted"
    with Store(task.url).writing(task.images_name(partition)) as path, ipc.new_file(str(path), SCHEMA) as file:
        for rows in read_partition(task.source, partition):
            for records in _in_parts(_decoded(row, task, task.size) for row in rows):
                file.write_batch(pa.RecordBatch.from_pylist(records, schema=SCHEMA))


def _in_parts(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Records, as many at a time as have MAX_PIXELS_BYTES of pixels: those of a small file may be large."""
    part, size = list[dict[str, Any]](), 0
    for record in records:
        part.append(record)
        size += len(record.get("image", b""))
        if size > MAX_PIXELS_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _decoded(row: Row, task: PreparationTask, size: Size) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "path": row.path, "row": row.row}
    if row.label is not None:
        record |= {"text": _text(row)} if task.source.labels == "text" else {"label": _number(row)}
    if row.problem:
        return record | {"kind": REJECTED if row.is_image else LEFT_OUT, "reason": row.problem}
    try:
        image = decode(row.data, size, task.channels, task.white_level)
    except Rejected as error:
        is_image = row.is_image or not isinstance(error, NotAnImageError)
        return record | {"kind": REJECTED if is_image else LEFT_OUT, "reason": str(error)}
    return record | {"channels": image.pixels.shape[-1], "image": image.pixels.tobytes(), "peak": image.peak}


def _number(row: Row) -> int:
    if row.label > LARGEST_LABEL:
        raise pa.ArrowInvalid(f"row {row.row} has label {row.label}; allowed: 0 to K - 1, for K classes")
    return row.label


def _text(row: Row) -> str:
    if len(str(row.label)) > LONGEST_LABEL:
        raise pa.ArrowInvalid(
            f"row {row.row} has a label of {len(str(row.label))} characters; allowed: {LONGEST_LABEL}"
        )
    return row.label


@dataclass(frozen=True)
class StagedParts:
    """The parts of all partitions, once all are written."""

    task: PreparationTask
    partitions: Sequence[Partition]

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        store = Store(self.task.url)
        for partition in self.partitions:
            with store.fetched(self.task.images_name(partition)) as path:
                yield from _read(path, columns)

    @cached_property
    def image_records(self) -> pa.Table:
        """A table with a row for each image: all columns of the parts but the pixels."""
        columns = [name for name in SCHEMA.names if name != "image"]
        kept = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches(self._batches(columns), kept).combine_chunks()

    def unused(self, kind: str) -> pa.Table:
        """Path, row and reason of what is not used, of one kind."""
        records = self.image_records
        rows = [number for number, of in enumerate(records["kind"].to_pylist()) if of == kind]
        return records.take(pa.array(rows, pa.int64())).select(["path", "row", "reason"])

    @cached_property
    def good(self) -> pa.Table:
        """The records of the usable images."""
        return self.image_records.filter(self.image_records["kind"].is_null())

    @cached_property
    def channels(self) -> int:
        """Channels of the prepared images: 1 if every usable image is grey, else 3."""
        return int(self.good["channels"].to_numpy().max())

    @property
    def peak(self) -> int | None:
        """Highest value of the usable images of more than 8 bits a channel; None where there are none."""
        return max(filter(None, self.good["peak"].to_pylist()), default=None)

    def blocks(self) -> Iterator[Block]:
        """The usable images, in the order of the source."""
        channels = self.channels
        for batch in self._batches(["id", "image"]):
            used = batch.filter(batch.column("image").is_valid())
            if len(used):
                yield Block(self._pixels(used.column("image"), channels), used.column("id").to_pylist())

    def _pixels(self, images: pa.Array, channels: int) -> NDArray[np.uint8]:
        assert self.task.size is not None, "sizes were counted"
        width, height = self.task.size
        pixels = np.empty((len(images), height, width, channels), dtype=np.uint8)
        for at, image in enumerate(images):
            flat = np.frombuffer(image.as_buffer(), dtype=np.uint8)
            pixels[at] = flat.reshape(height, width, -1)  # one channel is repeated where three are wanted
        return pixels


def _read(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of some columns, copied to memory: mapping every part at once could exceed a process's limit of maps."""
    wanted = ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    with pa.OSFile(str(path)) as source, ipc.open_file(source, options=wanted) as file:
        for at in range(file.num_record_batches):
            yield file.get_batch(at)
