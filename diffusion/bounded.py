"""Files from elsewhere, read only as far as memory allows."""

import os
from pathlib import Path


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file, which may come from elsewhere, and of which a hole takes no disk.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, most)
        content = file.read((size or most) + 1)  # of a pipe, no size is known
    check_bytes(len(content), most)
    return content


def check_bytes(size: int, most: int) -> None:
    """Raise ValueError for a file of more bytes than are read."""
    if size > most:
        raise ValueError(f"has {size} bytes or more; allowed: at most {most}")
