"""The run's journal: events as JSON, one record per line, appended by rank 0 and the driver, read by everyone.

Workers never talk to a tracking server or a terminal: they append here, which cannot stall a step. The driver reads the
same file to draw progress and to upload to MLflow, and can be killed and restarted without losing a record.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from diffusion import durable
from diffusion.json_text import json_text
from trainer.files import is_mapping

MAX_LINE_BYTES = 2**24


def _now_ms() -> int:
    return time.time_ns() // 10**6


@dataclass(frozen=True, kw_only=True)
class _Event:
    """The fields that all records have.

    Attributes:
        kind: the record's name in the file.
        spread: name of the mapping field whose entries become keys of the JSON object; empty where there is none.
        time_ms: time of the event by the writer's clock, in milliseconds since 1970.
    """

    kind: ClassVar[str]
    spread: ClassVar[str] = ""
    time_ms: int = field(default_factory=_now_ms)


@dataclass(frozen=True, kw_only=True)
class Started(_Event):
    """A group of workers begins to train.

    Attributes:
        step: the step that training resumes after; 0 for a new run.
        steps: the number of steps to train for, `training.steps`.
        world_size: number of workers.
    """

    kind: ClassVar[str] = "start"
    step: int
    steps: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Metrics(_Event):
    """Training metrics, averaged over the steps since the previous record.

    Attributes:
        step: the last step averaged over.
        values: metric name, such as `loss`, `lr` or `images_per_second` -> value.
    """

    kind: ClassVar[str] = "metrics"
    spread: ClassVar[str] = "values"
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(_Event):
    """A checkpoint is complete.

    Attributes:
        step: the checkpoint's training step.
        stalled: seconds that training waited for the checkpoint.
        seconds: seconds from start to completion, most of them in the background.
    """

    kind: ClassVar[str] = "checkpoint"
    step: int
    stalled: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluated(_Event):
    """A checkpoint was evaluated while training went on.

    Attributes:
        step: the checkpoint's training step.
        scores: metric name -> value; standard errors under `<name>_se`.
        samples_png: path of a grid of samples; None where no samples were drawn.
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
        step: training step of the event; None outside training.
    """

    kind: ClassVar[str] = "warning"
    text: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Initialised(_Event):
    """A run begins with the weights of a package.

    Attributes:
        text: which package, which parts are its, and which are new; one line.
        step: 0.
    """

    kind: ClassVar[str] = "initialised"
    text: str
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Acknowledged(_Event):
    """The workers have read a request to stop, and write a checkpoint after the step in progress.

    Attributes:
        text: the reason given.
        step: None: the thread that reads requests does not know it.
    """

    kind: ClassVar[str] = "stopping"
    text: str
    step: None = None


@dataclass(frozen=True, kw_only=True)
class Stopped(_Event):
    """The workers wrote a checkpoint and stopped, because they were asked to.

    Attributes:
        step: the last step trained.
        text: the reason given.
    """

    kind: ClassVar[str] = "preempted"
    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class NonFinite(_Event):
    """Training gave up because a loss, gradient or weight is NaN or infinite.

    Attributes:
        step: training step of the event.
        text: one line that names the ranks and says what usually helps.
    """

    kind: ClassVar[str] = "nonfinite"
    step: int
    text: str


Record = (
    Started
    | Initialised
    | Metrics
    | CheckpointSaved
    | CheckpointEvaluated
    | Warned
    | Acknowledged
    | Stopped
    | NonFinite
)
R = TypeVar("R", bound=_Event)
KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in get_args(Record)}


def encode(record: Record) -> dict[str, Any]:
    """A record as a JSON object, kind and time first; without fields that are None, and numbers that are not finite."""
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    entries = {name: value for name, value in values.pop(record.spread, {}).items() if _is_finite(value)}
    return {"kind": record.kind, **{name: value for name, value in values.items() if value is not None}, **entries}


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def decode(values: object) -> Record | None:
    """The record in a JSON object; None for kinds that this version does not know and for anything else."""
    if not is_mapping(values):
        return None
    kind = KINDS.get(values.get("kind", ""))
    if kind is None:
        return None
    names = {each.name for each in fields(kind)} - {kind.spread}
    known = {name: value for name, value in values.items() if name in names}
    if kind.spread:
        known[kind.spread] = {name: value for name, value in values.items() if name not in names and name != "kind"}
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
        """Add a record; if an earlier writer was killed in the middle of a line, that line is ended first."""
        line = json_text(encode(record), compact=True).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def sync(self) -> None:
        """Have what was appended reach the disk."""
        if self.path.exists():
            durable.sync(self.path)
            durable.sync(self.path.parent)

    def size(self) -> int:
        """The offset behind the last record, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Records from a byte offset on, each with the offset behind it; an unfinished last line is left for later.

        Lines damaged by a kill or a power cut, and records of kinds that this version does not know, are skipped.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    record = decode(json.loads(line))
                except (ValueError, RecursionError):
                    continue
                if record is not None:
                    yield record, offset

    def records(self, kind: type[R], offset: int = 0) -> Iterator[R]:
        """The records of one kind from a byte offset on."""
        return (record for record, _ in self.read(offset) if isinstance(record, kind))
