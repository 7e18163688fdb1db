"""The parts that a preparation leaves on its way, without Ray: sizes by headers, pixels or a reason, labels of all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.config.data import DataConfig
from trainer.data.labels import resolve_labels
from trainer.data.prepare import scan_source
from trainer.data.staging import REJECTED, PreparationTask, StagedParts, common_size, count_sizes, decode_partition
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
    source = scan_source(DataConfig(source=str(tmp_path / "source"))).source
    assert source is not None
    return PreparationTask(source, str(tmp_path / "dest"), "parts", None, "auto")


def sized(task: PreparationTask, size: tuple[int, int]) -> PreparationTask:
    return PreparationTask(task.source, task.url, task.folder, size, task.channels)


def test_the_size_is_that_of_most_images_and_is_asked_for_where_there_is_none(task):
    partitions = task.source.partitions
    for partition in partitions:
        count_sizes(task, partition)
    with pytest.raises(InputError, match=r"the 5 images are of 3 sizes.*: 4x4 \(2\), 6x6 \(2\), 8x8 \(1\); allowed"):
        common_size(task, partitions)
    (Path(task.url) / task.sizes_name(partitions[0])).write_text('{"4x4": 3, "6x6": 2}')
    assert common_size(task, partitions) == (4, 4)
    assert common_size(task, []) is None


def test_a_part_has_pixels_or_the_reason_why_there_are_none(task):
    task, partitions = sized(task, (4, 4)), task.source.partitions
    for partition in partitions:
        decode_partition(task, partition)
    parts = StagedParts(task, partitions)
    assert len(parts.image_records) == 6
    assert len(parts.good) == 5
    (spoilt,) = parts.unused(REJECTED).to_pylist()
    assert spoilt["path"].endswith("spoilt.png")
    assert spoilt["reason"]
    assert parts.channels == 1
    pixels = np.concatenate([block.pixels for block in parts.blocks()])
    assert pixels.shape == (5, 4, 4, 1)
    first = np.asarray(Image.open(Path(task.source.url) / "a" / "0.png"))
    assert any(np.array_equal(image[..., 0], first) for image in pixels)


@pytest.mark.parametrize(
    ("values", "names", "labels", "classes"),
    [
        ([1, 0, 1], (), [1, 0, 1], ()),
        ([1, 0, 1], ("x", "y"), [1, 0, 1], ("x", "y")),
        (["cat", "ant", "cat"], (), [1, 0, 1], ("ant", "cat")),
        (["cat", "ant"], ("cat", "ant"), [0, 1], ("cat", "ant")),
        (["10", "2", "1"], (), [2, 1, 0], ("1", "2", "10")),
        (["img10", "img9b", "img9a"], (), [2, 1, 0], ("img9a", "img9b", "img10")),
        ([None, None], (), [-1, -1], ()),
        ([-1, -1], ("x",), [-1, -1], ()),
    ],
)
def test_labels_are_numbers_from_zero(values, names, labels, classes):
    found = resolve_labels(values, DataConfig(source="s"), names)
    assert (found[0].tolist(), found[1]) == (labels, classes)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, None], (), "1 of 2 images"),
        ([0, 2], (), "no image has 1"),
        ([0, 2], ("x", "y"), "allowed: 0 to 1"),
        (["cat", "dog"], ("cat",), "1 of 2 images"),
    ],
)
def test_labels_without_classes_are_refused(values, names, message):
    with pytest.raises(InputError, match=message):
        resolve_labels(values, DataConfig(source="s"), names)
