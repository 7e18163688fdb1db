"""The run's journal: what happened, one JSON record a line, appended by rank 0 and read by everyone else.

Workers never talk to a tracking server or a terminal: they append here, which cannot stall a step. The driver reads the
same file to draw progress and to upload to MLflow, and can be killed and restarted without losing a record.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """An append-only file of JSON lines on the run's storage."""

    def __init__(self, path: Path) -> None:
        """Name the file; it appears with the first record."""
        self.path = path

    def append(self, kind: str, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add a record; a line that an earlier writer was killed in the middle of is closed first."""
        record = {"kind": kind, "time_ms": time.time_ns() // 10**6, **values}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def size(self) -> int:
        """The offset behind the last record."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Records from a byte offset on, each with the offset behind it; an unfinished last line is left for later."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    yield json.loads(line), offset
                except ValueError:  # a line that a kill or a power cut spoilt
                    continue
