"""What the preparation of many files leaves on its way: a part for each unit, from which a killed job goes on.

A part says of each row of its unit either the pixels or the reason why there are none.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from trainer.data.decode import Channels, Rejected, Size, decode, upright_size
from trainer.data.files import Row, Source, Unit, read_unit
from trainer.data.store import Store
from trainer.data.writer import Block

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "path": pa.string(),
        "row": pa.int64(),
        "label": pa.int64(),
        "text": pa.string(),
        "reason": pa.string(),
        "channels": pa.int64(),  # of the image itself; null where rejected, as the image is
        "image": pa.large_binary(),
    }
)


@dataclass(frozen=True)
class Work:
    """What is done to each unit of a source, and where the parts go.

    Attributes:
        source: as it was found, without its units: there may be many, and this goes to every worker.
        url: of the destination.
        folder: of the parts, in the destination.
        size: wanted width and height; None while it is not known.
        channels: wanted.
    """

    source: Source
    url: str
    folder: str
    size: Size | None
    channels: Channels

    def sizes_name(self, unit: Unit) -> str:
        """The part that counts a unit's sizes."""
        return f"{self.folder}/sizes-{unit.number:05d}.json"

    def images_name(self, unit: Unit) -> str:
        """The part with a unit's images."""
        return f"{self.folder}/images-{unit.number:05d}.arrow"


def count_sizes(work: Work, unit: Unit) -> None:
    """Write how often each size occurs in a unit, by headers alone."""
    sizes: Counter[str] = Counter()
    for rows in read_unit(work.source, unit):
        for row in rows:
            try:
                width, height = upright_size(row.data)
                sizes[f"{width}x{height}"] += 1
            except Rejected:  # told with its reason when it is decoded
                continue
    Store(work.url).write(work.sizes_name(unit), json.dumps(sizes).encode())


def modal_size(work: Work, units: Sequence[Unit]) -> Size | None:
    """The commonest size of all images, the smaller one of two; None where there is no image."""
    store, sizes = Store(work.url), Counter[str]()
    for unit in units:
        sizes.update(json.loads(store.read(work.sizes_name(unit))))
    counted = [(count, *map(int, name.split("x"))) for name, count in sizes.items()]
    if not counted:
        return None
    _, width, height = min(counted, key=lambda entry: (-entry[0], entry[1] * entry[2], entry[1]))
    return width, height


def decode_unit(work: Work, unit: Unit) -> None:
    """Write a unit's images."""
    assert work.size is not None, "sizes were counted"
    with Store(work.url).writing(work.images_name(unit)) as path, ipc.new_file(str(path), SCHEMA) as file:
        for rows in read_unit(work.source, unit):
            made = [_decoded(row, work.size, work.channels, work.source.labels) for row in rows]
            file.write_batch(pa.RecordBatch.from_pylist(made, schema=SCHEMA))


def _decoded(row: Row, size: Size, channels: Channels, labels: str | None) -> dict[str, Any]:
    made: dict[str, Any] = {"id": row.id, "path": row.path, "row": row.row}
    if row.label is not None:
        made |= {"text": row.label} if labels == "text" else {"label": row.label}
    try:
        pixels = decode(row.data, size, channels)
        return made | {"channels": pixels.shape[-1], "image": pixels.tobytes()}
    except Rejected as error:
        return made | {"reason": str(error)}


@dataclass(frozen=True)
class Parts:
    """The parts of all units, once they are there."""

    work: Work
    units: Sequence[Unit]

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        store = Store(self.work.url)
        for unit in self.units:
            with store.fetched(self.work.images_name(unit)) as path:
                yield from _read(path, columns)

    @cached_property
    def facts(self) -> pa.Table:
        """Everything but the pixels."""
        columns = [name for name in SCHEMA.names if name != "image"]
        kept = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches(self._batches(columns), kept).combine_chunks()

    @cached_property
    def rejected(self) -> pa.Table:
        """Path, row and reason of the images that are not used."""
        return self.facts.filter(self.facts["reason"].is_valid()).select(["path", "row", "reason"])

    @cached_property
    def good(self) -> pa.Table:
        """What is known of the images that are used."""
        return self.facts.filter(self.facts["reason"].is_null())

    @cached_property
    def channels(self) -> int:
        """One where every image is grey, else three."""
        return int(self.good["channels"].to_numpy().max())

    def blocks(self) -> Iterator[Block]:
        """The images that are used, in order."""
        channels = self.channels
        for batch in self._batches(["id", "image"]):
            used = batch.filter(batch.column("image").is_valid())
            if len(used):
                yield Block(self._pixels(used.column("image"), channels), used.column("id").to_pylist())

    def _pixels(self, images: pa.Array, channels: int) -> NDArray[np.uint8]:
        assert self.work.size is not None, "sizes were counted"
        width, height = self.work.size
        pixels = np.empty((len(images), height, width, channels), dtype=np.uint8)
        for at, image in enumerate(images):
            flat = np.frombuffer(image.as_buffer(), dtype=np.uint8)
            pixels[at] = flat.reshape(height, width, -1)  # one channel is repeated where three are wanted
        return pixels


def _read(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns, copied to memory: a map of every part at once may be more maps than a process may have."""
    wanted = ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    with pa.OSFile(str(path)) as source, ipc.open_file(source, options=wanted) as file:
        for at in range(file.num_record_batches):
            yield file.get_batch(at)
