"""The parts that a preparation leaves on its way, without Ray: sizes by headers, pixels or a reason, labels of all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from trainer.config.data import DataConfig
from trainer.data.files import Source
from trainer.data.prepare import scan_source
from trainer.data.ray_job import resolve_labels
from trainer.data.staging import PreparationTask, StagedParts, count_sizes, decode_partition, modal_size
from trainer.errors import InputError


@pytest.fixture
def task(tmp_path) -> PreparationTask:
    """Five images of three sizes in two classes, one of them spoilt."""
    rng = np.random.default_rng(0)
    for number, (side, name) in enumerate([(4, "a"), (4, "a"), (6, "b"), (6, "b"), (8, "a")]):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "source" / "b" / "spoilt.png").write_bytes(b"no picture")
    source, _ = scan_source(DataConfig(source=str(tmp_path / "source")))
    assert source is not None
    return PreparationTask(source, str(tmp_path / "dest"), "parts", None, "auto")


def sized(task: PreparationTask, size: tuple[int, int]) -> PreparationTask:
    return PreparationTask(task.source, task.url, task.folder, size, task.channels)


def test_the_size_is_the_commonest_and_of_two_the_smaller(task):
    partitions = task.source.partitions
    for partition in partitions:
        count_sizes(task, partition)
    assert modal_size(task, partitions) == (4, 4)
    assert modal_size(task, []) is None


def test_a_part_has_pixels_or_the_reason_why_there_are_none(task):
    task, partitions = sized(task, (4, 4)), task.source.partitions
    for partition in partitions:
        decode_partition(task, partition)
    parts = StagedParts(task, partitions)
    assert len(parts.image_records) == 6
    assert len(parts.good) == 5
    (spoilt,) = parts.rejected.to_pylist()
    assert spoilt["path"].endswith("spoilt.png")
    assert spoilt["reason"]
    assert parts.channels == 1
    pixels = np.concatenate([block.pixels for block in parts.blocks()])
    assert pixels.shape == (5, 4, 4, 1)
    first = np.asarray(Image.open(Path(task.source.url) / "a" / "0.png"))
    assert any(np.array_equal(image[..., 0], first) for image in pixels)


def table(values: list, kind: str) -> pa.Table:
    return pa.table({"label": pa.array(values if kind == "integer" else [None] * len(values), pa.int64()),
                     "text": pa.array(values if kind == "text" else [None] * len(values), pa.string())})  # fmt: skip


def source(kind: str | None, names: tuple[str, ...] = ()) -> Source:
    return Source("s", (), (), labels=kind, class_names=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "kind", "names", "labels", "classes"),
    [
        ([1, 0, 1], "integer", (), [1, 0, 1], ()),
        ([1, 0, 1], "integer", ("x", "y"), [1, 0, 1], ("x", "y")),
        (["cat", "ant", "cat"], "text", (), [1, 0, 1], ("ant", "cat")),
        (["cat", "ant"], "text", ("cat", "ant"), [0, 1], ("cat", "ant")),
        ([None, None], "integer", (), [-1, -1], ()),
    ],
)
def test_labels_are_numbers_from_zero(values, kind, names, labels, classes):
    found = resolve_labels(table(values, kind), source(kind, names), DataConfig(source="s"))
    assert (found[0].tolist(), found[1]) == (labels, classes)


@pytest.mark.parametrize(
    ("values", "kind", "names", "message"),
    [
        ([0, None], "integer", (), "1 of 2 images"),
        ([0, 2], "integer", (), "no image has 1"),
        ([0, 2], "integer", ("x", "y"), "allowed: 0 to 1"),
        (["cat", "dog"], "text", ("cat",), "1 of 2 images"),
    ],
)
def test_labels_without_classes_are_refused(values, kind, names, message):
    with pytest.raises(InputError, match=message):
        resolve_labels(table(values, kind), source(kind, names), DataConfig(source="s"))
