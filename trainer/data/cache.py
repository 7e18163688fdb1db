"""Shards on S3, copied once to each node: by SHA-256, whole, and by one process at a time.

In $DUALVIEW_CACHE, or ~/.cache/dualview. Nothing removes them: do so when no run needs them.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.data.manifest import Shard
from trainer.data.store import Store
from trainer.files import file_lock

DOWNLOADS = 4
PATIENCE_S = 3600.0


def cache_folder() -> Path:
    """Where this node keeps shards."""
    return Path(os.environ.get("DUALVIEW_CACHE") or Path.home() / ".cache" / "dualview") / "shards"


def cached(location: str, shards: Sequence[Shard]) -> list[Path]:
    """Local copies of an S3 prefix's shards, in order.

    Raises:
        OSError: one cannot be read.
        ValueError: one is not what `dataset.json` says.
    """
    store, folder = Store(location), cache_folder()
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return list(pool.map(lambda shard: _one(store, folder, shard), shards))


def _one(store: Store, folder: Path, shard: Shard) -> Path:
    path = folder / f"{shard.sha256}.arrow"
    if _whole(path, shard):
        return path
    with file_lock(folder / f"{shard.sha256}.lock", f"{path}: another process is copying it", PATIENCE_S):
        if _whole(path, shard):
            return path
        copy = path.with_suffix(".part")
        store.download(shard.name, copy)
        found = file_sha256(copy)
        if found != shard.sha256:
            copy.unlink()
            raise ValueError(f"{store.url}/{shard.name}: SHA-256 {found[:16]}…, but dataset.json says {shard.sha256}")
        copy.replace(path)
    return path


def _whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
