"""The fingerprint of a prepared data set, and whether a folder from elsewhere has the one that it claims.

Runs, classifiers and references are told apart by fingerprints, so nobody may claim that of other data. A folder that
`data.source` names is hashed once, which takes as long as reading it; what was found is noted in the run's storage, and
holds while no file's size, times and inode change. The time of a change (ctime) cannot be set back by a file's owner.
"""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import file_sha256
from trainer.data.dataset import Dataset
from trainer.data.manifest import FILE, SPLITS, Shard
from trainer.errors import InputError
from trainer.files import read_json, write_json

HASHED_AT_ONCE = 4  # shards, by threads


class Fingerprint:
    """Running SHA-256 of each split's images, then its labels; how they are divided into shards makes no difference."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        """Of images (C, H, W)."""
        self._shape, self._digest = image_shape, hashlib.sha256()

    def begin(self, split: str, count: int) -> None:
        """Begin a split of so many images."""
        channels, height, width = self._shape
        self._digest.update(f"{split} {(count, height, width, channels)}".encode())

    def images(self, pixels: NDArray[np.uint8]) -> None:
        """Add the split's next images, uint8 [n, H, W, C]."""
        self._digest.update(pixels.data)

    def labels(self, labels: NDArray[np.int64]) -> None:
        """Add the labels of the split's images, int64 [N]."""
        self._digest.update(labels.astype("<i8").tobytes())

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._digest.hexdigest()


def verify_folder(dataset: Dataset, notes: Path) -> None:
    """Refuse a prepared folder that has links, other files than its manifest says, or another fingerprint.

    Args:
        dataset: in the folder.
        notes: folder in which it is noted that this has been verified.

    Raises:
        InputError: naming the file.
    """
    if dataset.info.location is not None:
        raise InputError(f"{dataset.folder}: {FILE} has location = {dataset.info.location!r}; allowed: none here")
    shards = [shard for split in SPLITS for shard in dataset.info.shards[split]]
    states = [_state(dataset.folder / shard.name, shard.bytes) for shard in shards]
    manifest = hashlib.sha256(dataset.info.to_json().encode()).hexdigest()
    known = {"folder": str(dataset.folder), "manifest": manifest, "states": states}
    note = notes / f"{hashlib.sha256(os.fsencode(dataset.folder)).hexdigest()[:32]}.json"
    if _noted(note) == known:
        return
    size = sum(shard.bytes for shard in shards) / 2**30
    print(f"  verifying {dataset.folder}, {size:.3g} GiB; this is done once", flush=True)
    _check_digests(dataset, shards)
    notes.mkdir(parents=True, exist_ok=True)
    write_json(note, known)


def _state(path: Path, size: int) -> list[int]:
    """What changes with a file's content: its size, times and inode.

    Raises:
        InputError: it is not there, a link or of another size.
    """
    try:
        status = path.lstat()
    except OSError:
        status = None
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise InputError(
            f"{path}: missing or incomplete, or a link; allowed: a file of {size} bytes, as {FILE} says"
        ) from None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _noted(note: Path) -> dict[str, Any] | None:
    try:
        return read_json(note)
    except (OSError, ValueError):
        return None


def _check_digests(dataset: Dataset, shards: list[Shard]) -> None:
    """Compare the shards' SHA-256, and the fingerprint, with what the manifest says."""
    info, paths = dataset.info, [dataset.folder / shard.name for shard in shards]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        digests = pool.map(file_sha256, paths)
        found = _fingerprint_of(dataset)
        for path, shard, digest in zip(paths, shards, digests, strict=True):
            if digest != shard.sha256:
                raise InputError(f"{path}: SHA-256 {digest[:16]}…; allowed: {shard.sha256[:16]}…, as {FILE} says")
    if found != info.fingerprint:
        raise InputError(
            f"{dataset.folder}: {FILE} has fingerprint = {info.fingerprint}; allowed: {found}, that of its images and "
            "labels"
        )


def _fingerprint_of(dataset: Dataset) -> str:
    fingerprint = Fingerprint(dataset.info.image_shape)
    for split in SPLITS:
        fingerprint.begin(split, dataset.info.rows(split))
        if dataset.info.shards[split]:
            for pixels in dataset.images(split).shards:
                fingerprint.images(pixels)
        fingerprint.labels(dataset.labels(split) if dataset.info.shards[split] else np.zeros(0, np.int64))
    return fingerprint.hexdigest()
