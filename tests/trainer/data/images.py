"""Image files and Parquet files of them, as tests want them: good ones and hostile ones."""

import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str, size: tuple[int, int] = (6, 4), seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    shape = (size[1], size[0]) + (() if mode == "L" else (len(mode),))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of any header, true or not; grey unless `colour` says otherwise."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def parquet(
    path: Path,
    files: Sequence[bytes | None],
    labels: Any = None,
    *,
    names: list[str] | None = None,
    rows: int = 8,
    image: str = "image",
    label: str = "label",
) -> str:
    """A Parquet file in the Hugging Face image layout, in row groups of `rows`."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {image: pa.array([None if file is None else {"bytes": file, "path": None} for file in files], kind)}
    if labels is not None:
        columns[label] = pa.array(labels)
    table = pa.table(columns)
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return str(path)
