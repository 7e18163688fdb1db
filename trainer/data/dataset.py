"""A prepared data set as workers see it: memory-mapped uint8 images, labels and ids.

A run's source is prepared once, into storage/datasets/<plan>/, unless it is a prepared data set already. For a data set
on S3 the run's storage holds only `dataset.json`, which names where the shards are; each node downloads them once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import cached
from trainer.data.manifest import FILE, DatasetInfo, parse
from trainer.data.mapped_images import Pixels, map_shard, shard_pixels


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
        return Pixels([shard_pixels(path, self.info.image_shape) for path in self._paths(split)])

    def labels(self, split: str) -> NDArray[np.int64]:
        """A split's labels, int64 [N]; -1 where there are none."""
        return np.concatenate([map_shard(path).column("label").to_numpy() for path in self._paths(split)])

    def ids(self, split: str) -> list[str]:
        """The stable names of a split's images."""
        return [name for path in self._paths(split) for name in map_shard(path).column("id").to_pylist()]

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
    return Dataset(folder, parse((folder / FILE).read_bytes(), str(folder)))
