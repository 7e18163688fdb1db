"""One rank's file of a checkpoint: safetensors, hashed while it is written, and synced before anyone counts on it."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

LENGTH_BYTES = 8  # of the header's length, which the file begins with
ALIGNMENT = 8


class ShardEntry(TypedDict):
    """A shard in the manifest: SHA-256 of the file, and its size in bytes."""

    sha256: str
    bytes: int


def write_shard(path: Path, fragments: Mapping[str, Tensor]) -> ShardEntry:
    """Write fragments as a safetensors file; returns once it is on the disk.

    The library's own writer holds a second copy of all tensors in memory, and the file would have to be read again for
    its digest.

    Args:
        path: the file.
        fragments: "kind|parameter|offset" -> float32 tensor in CPU memory.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in _pieces(fragments):
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def _pieces(fragments: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file: the header's length, the header (JSON), and the tensors in its order."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in sorted(fragments.items()):
        assert tensor.dtype == torch.float32, f"{name}: {tensor.dtype}"
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(LENGTH_BYTES, "little")
    yield text
    for _, tensor in sorted(fragments.items()):
        if tensor.numel():
            yield tensor.contiguous().numpy().data.cast("B")
