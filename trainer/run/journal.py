"""The run's journal: what happened, one JSON record a line, appended by rank 0 and by the driver, read by everyone.

Workers never talk to a tracking server or a terminal: they append here, which cannot stall a step. The driver reads the
same file to draw progress and to upload to MLflow, and can be killed and restarted without losing a record.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_args


def _now_ms() -> int:
    return time.time_ns() // 10**6


@dataclass(frozen=True, kw_only=True)
class _Event:
    """What all records have.

    Attributes:
        kind: the record's name in the file.
        spread: the field whose entries are keys of the JSON object themselves; empty where there is none.
        time_ms: when it happened, by the writer's clock, in milliseconds since 1970.
    """

    kind: ClassVar[str]
    spread: ClassVar[str] = ""
    time_ms: int = field(default_factory=_now_ms)


@dataclass(frozen=True, kw_only=True)
class Started(_Event):
    """A group of workers begins to train.

    Attributes:
        step: that it begins after; 0 for a new run.
        steps: `training.steps`.
        world_size: number of workers.
    """

    kind: ClassVar[str] = "start"
    step: int
    steps: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Metrics(_Event):
    """Means over the steps since the record before.

    Attributes:
        step: the last of them.
        values: by metric name, such as `loss`, `lr` and `images_per_second`.
    """

    kind: ClassVar[str] = "metrics"
    spread: ClassVar[str] = "values"
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(_Event):
    """A checkpoint is complete.

    Attributes:
        step: of the checkpoint.
        stalled: seconds that training waited for it.
        seconds: from its beginning to its end, most of them beside training.
    """

    kind: ClassVar[str] = "checkpoint"
    step: int
    stalled: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluated(_Event):
    """A checkpoint was scored while training went on.

    Attributes:
        step: of the checkpoint.
        scores: values and standard errors by metric name.
        samples_png: the path of a grid of samples; None where none were drawn.
    """

    kind: ClassVar[str] = "evaluation"
    spread: ClassVar[str] = "scores"
    step: int
    scores: Mapping[str, float]
    samples_png: str | None = None


@dataclass(frozen=True, kw_only=True)
class Warned(_Event):
    """Something that the user should know, and that did not stop the run.

    Attributes:
        text: one line.
        step: at which it happened; None outside training.
    """

    kind: ClassVar[str] = "warning"
    text: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stopped(_Event):
    """The workers stopped after a checkpoint, because they were asked to.

    Attributes:
        step: the last one trained.
        text: why.
    """

    kind: ClassVar[str] = "preempted"
    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class NonFinite(_Event):
    """Training gave up over a loss, gradient or weight that is NaN or infinite.

    Attributes:
        step: at which it happened.
        text: one line with the ranks and what usually helps.
    """

    kind: ClassVar[str] = "nonfinite"
    step: int
    text: str


Record = Started | Metrics | CheckpointSaved | CheckpointEvaluated | Warned | Stopped | NonFinite
R = TypeVar("R", bound=_Event)
KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in get_args(Record)}


def encode(record: Record) -> dict[str, Any]:
    """A record as a JSON object: its kind and time first; what is None is left out."""
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    entries = values.pop(record.spread, {})
    return {"kind": record.kind, **{name: value for name, value in values.items() if value is not None}, **entries}


def decode(values: object) -> Record | None:
    """The record that a JSON object states; None for a kind of another version, or what is no record at all."""
    if not isinstance(values, dict):
        return None
    told = cast("dict[str, Any]", values)
    kind = KINDS.get(told.get("kind", ""))
    if kind is None:
        return None
    names = {each.name for each in fields(kind)} - {kind.spread}
    known = {name: value for name, value in told.items() if name in names}
    if kind.spread:
        known[kind.spread] = {name: value for name, value in told.items() if name not in names and name != "kind"}
    try:
        return kind(**known)
    except TypeError:
        return None


class Journal:
    """An append-only file of JSON lines on the run's storage."""

    def __init__(self, path: Path) -> None:
        """Name the file; it appears with the first record."""
        self.path = path

    def append(self, record: Record) -> None:
        """Add a record; a line that an earlier writer was killed in the middle of is closed first."""
        line = json.dumps(encode(record), separators=(",", ":")).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def size(self) -> int:
        """The offset behind the last record, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Records from a byte offset on, each with the offset behind it; an unfinished last line is left for later.

        Lines that a kill or a power cut spoilt, and kinds that this version does not know, are passed over.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    record = decode(json.loads(line))
                except ValueError:
                    continue
                if record is not None:
                    yield record, offset

    def records(self, kind: type[R], offset: int = 0) -> Iterator[R]:
        """The records of one kind from a byte offset on."""
        return (record for record, _ in self.read(offset) if isinstance(record, kind))
