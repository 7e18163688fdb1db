"""Writes a prepared data set: shards of a fixed number of rows, then `dataset.json`.

Images come as blocks in the order of the source, and are read once for each split, so that no more than about a shard
is in memory. The bytes written depend on nothing but the rows.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from trainer.data.cache import file_sha256
from trainer.data.decode import WHITE_16_BIT
from trainer.data.fingerprint import Fingerprint
from trainer.data.manifest import FILE, SPLITS, DatasetInfo, Shard
from trainer.data.split import Members
from trainer.data.store import Store

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 65536
DARK = 64
"""A data set with no pixel brighter than this is probably a mistake."""


@dataclass(frozen=True)
class Block:
    """Consecutive images.

    Attributes:
        pixels: pixel values 0..255, uint8 [n, H, W, C].
        ids: stable name of each image.
    """

    pixels: NDArray[np.uint8]
    ids: list[str]


Blocks = Callable[[], Iterator[Block]]


def rows_per_shard(image_shape: tuple[int, int, int]) -> int:
    """Rows of a shard of about 64 MiB."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(image_shape))))


def write_dataset(
    store: Store, blocks: Blocks, labels: NDArray[np.int64], members: Members, known: DatasetInfo
) -> DatasetInfo:
    """Write all shards and, last, `dataset.json`; returns its content.

    Args:
        store: the destination; shards of an earlier preparation are removed.
        blocks: called once per split; iterates over all N images in order.
        labels: class of each image, int64 [N]; -1 for an image without a label.
        members: of each split, which rows it has, bool [N].
        known: the fields that are known beforehand; counts, statistics, shards and the fingerprint are filled in.
    """
    writer = _DatasetWriter(store, known.image_shape)
    shards, counts = {}, {}
    for split in SPLITS:
        own = labels[members[split]]
        shards[split] = writer.split(split, _members(blocks(), members[split]), own)
        counts[split] = tuple(int(n) for n in np.bincount(own, minlength=known.classes)) if known.classes else ()
    kept = {shard.name for split in SPLITS for shard in shards[split]}
    for name in store.names():
        if name.endswith(".arrow") and name not in kept:
            store.remove(name)
    mean, std = writer.statistics()
    info = replace(
        known,
        notes=(*known.notes, *writer.notes(known.peak)),
        duplicates=writer.duplicates,
        fingerprint=writer.fingerprint.hexdigest(),
        train=int(members["train"].sum()),
        heldout=int(members["heldout"].sum()),
        class_counts=counts,
        mean=mean,
        std=std,
        schema={name: str(kind) for name, kind in zip(*_columns(known.image_shape), strict=True)},
        shards=shards,
    )
    store.write(FILE, info.to_json().encode())
    return info


def _members(blocks: Iterator[Block], members: NDArray[np.bool_]) -> Iterator[Block]:
    """The rows of each block that are in the split; `members` is bool [N] over all rows."""
    first = 0
    for block in blocks:
        here = members[first : first + len(block.ids)]
        first += len(block.ids)
        if here.any():
            yield Block(block.pixels[here], [block.ids[row] for row in np.flatnonzero(here)])
    assert first == len(members), "every image has a label"


def _columns(image_shape: tuple[int, int, int]) -> tuple[list[str], list[pa.DataType]]:
    return ["image", "label", "id"], [pa.binary(int(np.prod(image_shape))), pa.int64(), pa.string()]


class _DatasetWriter:
    """Writes the shards of one data set, and gathers its fingerprint and its pixel statistics.

    Attributes:
        fingerprint: of what was written.
        duplicates: number of held-out images whose pixels are those of a training image.
    """

    def __init__(self, store: Store, image_shape: tuple[int, int, int]) -> None:
        self.fingerprint = Fingerprint(image_shape)
        self._store, self._shape = store, image_shape
        self._level_counts = np.zeros((image_shape[0], 256), dtype=np.int64)
        self._trained_on = set[bytes]()
        self.duplicates = 0
        self._first_duplicate = ""

    def split(self, split: str, blocks: Iterator[Block], labels: NDArray[np.int64]) -> tuple[Shard, ...]:
        """Write the shards of one split; `labels` is int64 [n] over all its images."""
        self.fingerprint.begin(split, len(labels))
        shards: list[Shard] = []
        first = 0
        for block in _regrouped(blocks, rows_per_shard(self._shape)):
            if split == "train":
                self._count(block.pixels)
            self._compare(split, block)
            self.fingerprint.images(block.pixels)
            name = f"{split}-{len(shards):05d}.arrow"
            shards.append(self._shard(name, block, labels[first : first + len(block.ids)]))
            first += len(block.ids)
        self.fingerprint.labels(labels)
        return tuple(shards)

    def _compare(self, split: str, block: Block) -> None:
        """Look for held-out images among the training images; 16 bytes are kept of each of those."""
        for image, name in zip(block.pixels, block.ids, strict=True):
            digest = hashlib.blake2b(image.data, digest_size=16).digest()
            if split == "train":
                self._trained_on.add(digest)
            elif digest in self._trained_on:
                self.duplicates += 1
                self._first_duplicate = self._first_duplicate or name

    def _count(self, pixels: NDArray[np.uint8]) -> None:
        for channel, levels in enumerate(self._level_counts):
            for part in np.array_split(pixels[..., channel], len(pixels) // 1024 + 1):
                levels += np.bincount(part.ravel(), minlength=256)

    def _shard(self, name: str, block: Block, labels: NDArray[np.int64]) -> Shard:
        names, kinds = _columns(self._shape)
        images = pa.FixedSizeBinaryArray.from_buffers(kinds[0], len(labels), [None, pa.py_buffer(block.pixels)])
        batch = pa.record_batch([images, pa.array(labels, kinds[1]), pa.array(block.ids, kinds[2])], names=names)
        with self._store.writing(name) as path:
            with ipc.new_file(str(path), batch.schema) as file:
                file.write_batch(batch)
            return Shard(name, len(labels), path.stat().st_size, file_sha256(path))

    def notes(self, peak: int | None) -> list[str]:
        """What is odd about the images; `peak` is the highest value of those of more than 8 bits."""
        notes: list[str] = []
        brightest = int(np.flatnonzero(self._level_counts.sum(0)).max())
        if peak is not None and peak <= WHITE_16_BIT // 2 and brightest < 128:
            maps = "are they label maps? If " if peak < 256 else "if "
            notes.append(
                f"the images of more than 8 bits use 0 to {peak} of 0 to {WHITE_16_BIT}, and become 0 to {brightest} "
                f"of 0 to 255: {maps}{peak} is nearly white, say so with --white-level {2 ** peak.bit_length() - 1}"
            )
        elif brightest < DARK:
            notes.append(f"the images use 0 to {brightest} of 0 to 255: are they label maps, or too dark?")
        if self.duplicates:
            notes.append(
                f"{self.duplicates} held-out images are pixel-identical to training images; the first: "
                f"{self._first_duplicate}"
            )
        return notes

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the training pixels by channel, in 0..255; exact in any order."""
        values, count = np.arange(256), self._level_counts.sum(1)
        mean = self._level_counts @ values / count
        variance = self._level_counts @ values**2 / count - mean**2
        return tuple(mean.tolist()), tuple(np.sqrt(variance.clip(0)).tolist())


def _regrouped(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The same images in blocks of `rows`; the last block may be shorter."""
    waiting: list[Block] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block.ids)
        if count >= rows:
            whole, rest = _joined(waiting), count % rows
            for first in range(0, count - rest, rows):
                yield Block(whole.pixels[first : first + rows], whole.ids[first : first + rows])
            waiting, count = [Block(whole.pixels[count - rest :].copy(), whole.ids[count - rest :])], rest
    if count:
        yield _joined(waiting)


def _joined(blocks: list[Block]) -> Block:
    pixels = np.concatenate([block.pixels for block in blocks])
    return Block(pixels, [name for block in blocks for name in block.ids])
