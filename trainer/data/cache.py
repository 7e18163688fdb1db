"""Local copies of shards on S3: each node downloads a shard once, one process at a time, and verifies its SHA-256.

Copies are named by their SHA-256, in $DUALVIEW_CACHE or ~/.cache/dualview. They are never deleted automatically: delete
them when no run needs them.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffusion import durable
from trainer.data.manifest import Shard
from trainer.data.store import Store
from trainer.files import file_lock

PARALLEL_DOWNLOADS = 4
LOCK_TIMEOUT_S = 3600.0


def cache_folder() -> Path:
    """The folder of this node's local copies."""
    return Path(os.environ.get("DUALVIEW_CACHE") or Path.home() / ".cache" / "dualview") / "shards"


def cached(location: str, shards: Sequence[Shard]) -> list[Path]:
    """Paths of the local copies of an S3 prefix's shards, in the order of `shards`.

    Raises:
        OSError: a shard cannot be read.
        ValueError: the SHA-256 of one is not the one in `dataset.json`.
    """
    store, folder = Store(location), cache_folder()
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        return list(pool.map(lambda shard: _local_copy(store, folder, shard), shards))


def _local_copy(store: Store, folder: Path, shard: Shard) -> Path:
    path = folder / f"{shard.sha256}.arrow"
    if _is_complete(path, shard):
        return path
    with file_lock(folder / f"{shard.sha256}.lock", f"{path}: another process is copying it", LOCK_TIMEOUT_S):
        if _is_complete(path, shard):
            return path
        copy = path.with_suffix(".part")
        store.download(shard.name, copy)
        digest = file_sha256(copy)
        if digest != shard.sha256:
            copy.unlink()
            raise ValueError(f"{store.url}/{shard.name}: SHA-256 {digest[:16]}…, but dataset.json says {shard.sha256}")
        durable.sync(copy)
        copy.replace(path)
        durable.sync(folder)
    return path


def _is_complete(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
