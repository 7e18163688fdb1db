"""The images of a split as one array of several memory-mapped shards."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from trainer.data.manifest import FILE
from trainer.errors import InputError


class Pixels:
    """Images uint8 [N, H, W, C], indexed by a slice or by an array of row numbers; only the indexed rows are read.

    Attributes:
        shards: the arrays of the shards, uint8 [n, H, W, C] each.
        shape: (N, H, W, C).
    """

    def __init__(self, shards: Sequence[NDArray[np.uint8]]) -> None:
        """Concatenate the arrays of the shards, uint8 [n, H, W, C] each, without copying."""
        self.shards = shards
        self._firsts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape = (int(self._firsts[-1]), *shards[0].shape[1:])

    def __len__(self) -> int:
        """Number of images, N."""
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The indexed rows, uint8 [n, H, W, C], in the given order; a slice within one shard is not copied."""
        if isinstance(rows, slice):
            first, last, stride = rows.indices(len(self))
            shard = int(np.searchsorted(self._firsts, first, side="right")) - 1
            if stride == 1 and first < last <= self._firsts[shard + 1]:
                return self.shards[shard][first - self._firsts[shard] : last - self._firsts[shard]]
            rows = np.arange(first, last, stride)
        rows = np.asarray(rows)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()}; allowed: 0 to {len(self) - 1}")
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        homes = np.searchsorted(self._firsts, rows, side="right") - 1
        for home in np.unique(homes):
            here = homes == home
            result[here] = self.shards[home][rows[here] - self._firsts[home]]
        return result


def map_shard(path: Path, image_shape: tuple[int, int, int], rows: int) -> pa.RecordBatch:
    """The columns of a shard, memory-mapped; nothing is believed of a file, which may come from elsewhere.

    Args:
        path: of the shard.
        image_shape: (C, H, W) of its images, as `dataset.json` says.
        rows: how many they are, likewise.

    Raises:
        InputError: it is no shard, or an altered one.
    """
    try:
        batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)  # or its offsets could lead anywhere in memory
        kinds = {name: batch.schema.field(name).type for name in ("image", "label", "id")}
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a shard of a prepared data set: {' '.join(str(error).split())[:200]}") from None
    wrong = not pa.types.is_fixed_size_binary(kinds["image"]) or kinds["label"] != pa.int64()
    if wrong or kinds["id"] != pa.string() or batch.nbytes > path.stat().st_size:
        raise InputError(f"{path}: not a shard of a prepared data set: it has other columns, or they are compressed")
    if kinds["image"].byte_width != prod(image_shape):
        raise InputError(f"{path}: images of {kinds['image'].byte_width} bytes; allowed: {image_shape}, as {FILE} says")
    if len(batch) != rows:
        raise InputError(f"{path}: {len(batch)} rows; allowed: {rows}, as {FILE} says")
    return batch


def batch_pixels(batch: pa.RecordBatch, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A shard's images, memory-mapped, uint8 [n, H, W, C]; image_shape is (C, H, W)."""
    column = batch.column("image")
    channels, height, width = image_shape
    count = len(column) * channels * height * width  # the buffer may be longer, for alignment
    return np.frombuffer(column.buffers()[1], np.uint8, count).reshape(-1, height, width, channels)
