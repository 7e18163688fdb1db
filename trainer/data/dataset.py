"""A prepared data set as workers see it: memory-mapped uint8 images, labels and ids.

A run's source is prepared once, into storage/datasets/<plan>/, unless it is a prepared data set already. For a data set
on S3 the run's storage holds only `dataset.json`, which names where the shards are; each node downloads them once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.cache import cached
from trainer.data.manifest import FILE, DatasetInfo, parse, read_manifest
from trainer.data.mapped_images import Pixels, batch_pixels, map_shard


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
        folder: holds `dataset.json`; every node can read it.
        info: the content of its `dataset.json`.
    """

    folder: Path
    info: DatasetInfo

    def images(self, split: str) -> Pixels:
        """A split's images, uint8 [N, H, W, C], memory-mapped."""
        return Pixels([batch_pixels(batch, self.info.image_shape) for batch in self._batches(split)])

    def labels(self, split: str) -> NDArray[np.int64]:
        """A split's labels, int64 [N]; -1 where there are none."""
        return np.concatenate([batch.column("label").to_numpy() for batch in self._batches(split)])

    def ids(self, split: str) -> list[str]:
        """The stable names of a split's images."""
        return [name for batch in self._batches(split) for name in batch.column("id").to_pylist()]

    def _batches(self, split: str) -> Iterator[pa.RecordBatch]:
        """The shards of a split, memory-mapped, one after the other."""
        for path, shard in zip(self._paths(split), self.info.shards[split], strict=True):
            yield map_shard(path, self.info.image_shape, shard.rows)

    def _paths(self, split: str) -> list[Path]:
        shards = self.info.shards[split]
        if self.info.location:
            return cached(self.info.location, shards)
        return [self.folder / shard.name for shard in shards]


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared folder.

    Raises:
        InputError: it is of another format version.
    """
    return Dataset(folder, parse(read_manifest(folder / FILE), str(folder)))
