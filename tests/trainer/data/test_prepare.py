"""The preparation as a Ray Data job: what comes out of hostile sources, on any number of CPUs, after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from tests.disks import fill, small_disk
from tests.trainer.data.images import encoded, noise, parquet, png
from trainer.config.data import DataConfig
from trainer.data.__main__ import main
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.prepare import prepare
from trainer.errors import InputError
from trainer.runtime.ray_cluster import connect_ray

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"
ON_CPUS = """
import sys, ray
ray.init(num_cpus=int(sys.argv[1]), log_to_driver=False)
from trainer.data.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A Ray of two CPUs in this process."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    connect_ray()
    yield
    ray.shutdown()


def many(count, size=(6, 4), mode="L"):
    return [encoded(noise(mode, size, seed)) for seed in range(count)]


def prepared(source, dest, *options) -> Dataset:
    assert main(["prepare", str(source), str(dest), *map(str, options)]) == 0
    return open_dataset(Path(dest))


def by_id(dataset):
    """Every image and its label by its id."""
    return {
        name: (image, int(label))
        for split in ("train", "heldout")
        for name, image, label in zip(dataset.ids(split), dataset.images(split)[:], dataset.labels(split), strict=True)
    }


def refused(capsys, *arguments) -> str:
    assert main(["prepare", *map(str, arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    return errors


def hostile():
    """Files of all modes and sizes; and what is wrong with the bad ones, by row."""
    good = many(40)
    turned = Image.Exif()
    turned[0x0112] = 6
    other = [
        encoded(noise("RGBA", (12, 8))),
        encoded(noise("LA", (7, 9))),
        encoded(noise("RGB", (30, 20)), "JPEG"),
        encoded(noise("RGB", (4, 6)), "JPEG", exif=turned),
        encoded(Image.new("CMYK", (9, 6), (0, 255, 255, 0)), "JPEG"),
        encoded(noise("L").convert("P")),
        encoded(noise("RGB").convert("P"), "GIF"),
        encoded(Image.fromarray(np.full((4, 6), 40_000, np.uint16))),
        encoded(noise("L").convert("1")),
        encoded(noise("RGB"), "WEBP", lossless=True),
    ]
    bad = {
        3: (None, "null"),
        9: (b"", "empty"),
        17: (encoded(noise("RGB", (64, 64)), "JPEG")[:700], "cannot be decoded: OSError: image file is truncated"),
        21: (png(30_000, 30_000), "more than 50000000 pixels"),
        22: (b"<html>404</html>", "not an image of the formats"),
        30: (encoded(noise("L", (200, 2))), "wrong shape: 200 x 2"),
    }
    files = [*good, *other]
    for row, (file, _) in bad.items():
        files.insert(row, file)
    return files, {row: reason for row, (_, reason) in bad.items()}


def test_a_hostile_parquet_file_gives_its_good_images_and_a_reason_for_each_bad_one(tmp_path, capsys):
    files, bad = hostile()
    source = parquet(tmp_path / "hostile.parquet", files, [row % 2 for row in range(len(files))])
    line = refused(capsys, source, tmp_path / "dest")
    assert (
        f"--max-rejected = 0.01: {len(bad)} of {len(files)} images are rejected, the first hostile.parquet:3 (null)"
        in line
    )
    assert not (tmp_path / "dest" / "dataset.json").exists()
    dataset = prepared(source, tmp_path / "dest", "--max-rejected", len(bad) / len(files))
    rows = pq.read_table(tmp_path / "dest" / "rejected.parquet").to_pylist()
    assert [(row["path"], row["row"]) for row in rows] == [("hostile.parquet", row) for row in bad]
    assert all(row["reason"].startswith(reason) for row, reason in zip(rows, bad.values(), strict=True))
    assert (dataset.info.image_shape, dataset.info.rejected, dataset.info.classes) == ((3, 4, 6), len(bad), 2)
    found = by_id(dataset)
    assert set(found) == {f"hostile.parquet:{row}" for row in range(len(files)) if row not in bad}
    assert all(label == int(name.split(":")[1]) % 2 for name, (_, label) in found.items())
    image = found["hostile.parquet:0"][0]
    assert np.array_equal(image, np.asarray(noise("L", seed=0))[..., np.newaxis].repeat(3, -1))
    assert {path.name for path in (tmp_path / "dest").iterdir()} == {
        "dataset.json", "rejected.parquet", "train-00000.arrow", "heldout-00000.arrow",
    }  # fmt: skip


def test_images_of_one_channel_stay_so_and_a_broken_coloured_one_does_not_count(tmp_path):
    files = [*many(20), encoded(noise("RGB"))[:80]]
    dataset = prepared(parquet(tmp_path / "grey.parquet", files), tmp_path / "dest", "--max-rejected", 0.1)
    assert (dataset.info.image_shape, dataset.info.classes) == ((1, 4, 6), 0)
    assert np.array_equal(by_id(dataset)["grey.parquet:5"][0][..., 0], np.asarray(noise("L", seed=5)))


def test_size_and_channels_are_as_asked_for(tmp_path):
    dataset = prepared(parquet(tmp_path / "a.parquet", many(10)), tmp_path / "dest", "--size", 5, "--channels", 3)
    assert dataset.info.image_shape == (3, 5, 5)


def test_a_folder_of_images_has_its_sub_folders_as_classes(tmp_path):
    for seed, name in enumerate(["cats/b.png", "cats/a.png", "dogs/old/c.PNG", "dogs/d.png"] * 5):
        path = tmp_path / "pets" / name.replace(".", f"-{seed:02d}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise("RGB", seed=seed)))
    (tmp_path / "pets" / "README.txt").write_text("not an image")
    (tmp_path / "pets" / ".hidden.png").write_bytes(b"no")
    dataset = prepared(tmp_path / "pets", tmp_path / "dest", "--heldout-fraction", 0.5)
    assert (dataset.info.class_names, dataset.info.classes) == (("cats", "dogs"), 2)
    assert dataset.info.class_counts == {"train": (5, 5), "heldout": (5, 5)}
    found = by_id(dataset)
    assert np.array_equal(found["dogs/old/c-02.PNG"][0], np.asarray(noise("RGB", seed=2)))
    assert {name: label for name, (_, label) in found.items()} == {name: int(name[0] == "d") for name in found}
    assert dataset.ids("train") == sorted(dataset.ids("train"))


def test_several_parquet_files_are_one_source_in_the_order_of_their_names(tmp_path):
    files = many(12)
    parquet(tmp_path / "raw/b.parquet", files[6:], ["x", "y"] * 3)
    parquet(tmp_path / "raw/a/z.parquet", files[:6], ["y", "z"] * 3)
    dataset = prepared(tmp_path / "raw", tmp_path / "dest", "--heldout-fraction", 0.5)
    assert dataset.info.class_names == ("x", "y", "z")
    found = by_id(dataset)
    assert set(found) == {f"a/z.parquet:{row}" for row in range(6)} | {f"b.parquet:{row}" for row in range(6)}
    assert np.array_equal(found["b.parquet:1"][0][..., 0], np.asarray(noise("L", seed=7)))
    assert (found["a/z.parquet:0"][1], found["b.parquet:0"][1]) == (1, 0)


def command(cpus, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", ON_CPUS, str(cpus), "prepare", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_bytes_do_not_depend_on_the_number_of_cpus(tmp_path):
    files, bad = hostile()
    source = parquet(tmp_path / "raw.parquet", files * 4, rows=5)
    two = prepared(source, tmp_path / "two", "--max-rejected", 0.2)
    with command(1, source, tmp_path / "one", "--max-rejected", 0.2) as process:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert two.info.fingerprint in output
    assert two.info.rejected == 4 * len(bad)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)],
    ids=["told", "killed"],
)
def test_a_preparation_that_is_ended_goes_on_from_its_parts(tmp_path, capsys, number, code):
    """Told to stop, it ends within 10 s and leaves no process; killed, Ray's processes take longer."""
    source = parquet(tmp_path / "raw.parquet", many(160, (256, 256), "RGB"), rows=1)
    dest, mark = tmp_path / "dest", f"killed-{os.getpid()}"
    process = command(1, source, dest, "--size", 8, env={**os.environ, "DUALVIEW_TEST_MARK": mark})
    try:
        deadline = time.monotonic() + 60
        while len(kept := list(dest.glob(".parts/*/images-*.arrow"))) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == code, output
        if code == 75:
            assert "preempted (SIGTERM); run the same command again to resume" in output
            deadline = time.monotonic() + 60
            while left := marked(mark):
                assert time.monotonic() < deadline, left
                time.sleep(0.2)
    finally:
        end(mark)
    assert not (dest / "dataset.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in dest.glob(".parts/*/images-*.arrow")}
    assert 3 <= len(kept) < 160
    capsys.readouterr()
    whole = prepared(source, dest, "--size", 8)
    assert f"images: {len(kept)} of 160 parts are done already" in capsys.readouterr().out
    fresh = prepared(source, tmp_path / "fresh", "--size", 8)
    assert whole.info.fingerprint == fresh.info.fingerprint
    assert contents(dest) == contents(tmp_path / "fresh")


def marked(mark):
    """The live processes of a command, those of its Ray included."""
    processes = list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DUALVIEW_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def end(mark):
    """End the processes that a killed driver's Ray may have left."""
    for process in marked(mark):
        with suppress(psutil.Error):
            process.kill()


def test_a_part_that_was_kept_is_not_made_again(tmp_path, capsys):
    files = [*many(20), b"bad"]
    source = parquet(tmp_path / "raw.parquet", files, rows=5)
    refused(capsys, source, tmp_path / "dest")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("dest/.parts/*/*")}
    assert Counter(path.name.split("-")[0] for path in before) == {"sizes": 5, "images": 5}
    refused(capsys, source, tmp_path / "dest", "--max-rejected", 0.04)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("dest/.parts/*/*")} == before


def test_the_same_again_is_done_and_anything_else_is_refused(tmp_path, capsys):
    source = parquet(tmp_path / "raw.parquet", many(10))
    first = prepared(source, tmp_path / "dest")
    assert prepared(source, tmp_path / "dest") == first
    assert "prepared otherwise" in refused(capsys, source, tmp_path / "dest", "--size", 3)


def test_a_run_prepares_a_raw_source_once(tmp_path):
    source = parquet(tmp_path / "raw.parquet", many(20), [0, 1] * 10, names=["even", "odd"])
    first = prepare(DataConfig(source=source), tmp_path / "storage")
    written = (first.folder / "dataset.json").stat().st_mtime_ns
    again = prepare(DataConfig(source=source), tmp_path / "storage")
    assert again == first
    assert (again.folder / "dataset.json").stat().st_mtime_ns == written
    assert first.folder.parent == tmp_path / "storage" / "datasets"
    assert (first.info.class_names, first.info.source) == (("even", "odd"), source)
    assert prepare(DataConfig(source=source, size=5), tmp_path / "storage").info.image_shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0.5] * 10, None, "labels without classes: column 'label' is double"),
        ([0, None] * 5, None, "labels without classes: 5 of 10 images have none"),
        ([0, -1] * 5, None, "labels without classes: 5 of 10 images have none"),
        (["a", None] * 5, None, "labels without classes: 5 of 10 images have none"),
        ([0, 2] * 5, ["a", "b"], "labels without classes: 2 is the label of an image; allowed: 0 to 1"),
        ([0, 2] * 5, None, "labels without classes: labels go up to 2, but no image has 1"),
    ],
)
def test_labels_without_classes_are_refused(tmp_path, capsys, labels, names, said):
    source = parquet(tmp_path / "raw.parquet", many(10), labels, names=names)
    assert said in refused(capsys, source, tmp_path / "dest")
    assert prepared(source, tmp_path / "unlabelled", "--label-column", "none").info.classes == 0


@pytest.mark.parametrize("labels", [[-1] * 10, pa.array([None] * 10, pa.int64()), pa.array([None] * 10, pa.string())])
def test_labels_that_all_images_lack_are_no_labels(tmp_path, labels):
    dataset = prepared(parquet(tmp_path / "raw.parquet", many(10), labels), tmp_path / "dest")
    assert (dataset.info.classes, set(dataset.labels("train"))) == (0, {-1})


def test_the_splits_of_folders_are_the_split_and_the_folders_below_are_the_classes(tmp_path, capsys):
    for seed, name in enumerate(["train/2/a", "train/10/b", "train/10/c", "val/2/d", "val/10/e", "test/2/f"]):
        path = tmp_path / f"source/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise("L", seed=seed)))
    (tmp_path / "source/val/10/again.png").write_bytes((tmp_path / "source/train/2/a.png").read_bytes())
    own = prepared(tmp_path / "source", tmp_path / "own")
    assert own.ids("train") == ["train/10/b.png", "train/10/c.png", "train/2/a.png"]
    assert own.ids("heldout") == ["val/10/again.png", "val/10/e.png", "val/2/d.png"]
    assert own.info.class_names == ("2", "10")
    assert own.labels("train").tolist() == [1, 1, 0]
    assert (own.info.split, own.info.left_out, own.info.duplicates) == ("source", 1, 1)
    shown = capsys.readouterr().out
    assert "note: the split is the source's own: validation is held out" in shown
    assert "note: split test is not used" in shown
    assert "1 held-out images are pixel-identical to training images; the first: val/10/again.png" in shown
    left_out = pq.read_table(tmp_path / "own/rejected.parquet").to_pylist()
    assert [(row["path"], row["kind"]) for row in left_out] == [("test/2/f.png", "left out")]
    merged = prepared(tmp_path / "source", tmp_path / "merged", "--split", "seeded", "--heldout-fraction", 0.4)
    assert merged.info.split == "seeded"
    assert merged.info.train + merged.info.heldout == 7
    assert "data.split = source" in refused(
        capsys, tmp_path / "source/train", tmp_path / "none", "--split", "source", "--size", 4
    )


def test_a_run_takes_the_split_that_its_data_are_prepared_with(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        parquet(tmp_path / f"source/{split}-00000-of-00001.parquet", many(5)[-count:], [0, 1, 0][:count])
    found = prepare(DataConfig(source=str(tmp_path / "source")), tmp_path / "storage")
    assert (found.info.train, found.info.heldout, found.info.split) == (3, 2, "source")
    folder = str(found.folder)
    assert prepare(DataConfig(source=folder, heldout_fraction=0.5), tmp_path).info.train == 3
    with pytest.raises(InputError, match=r"data\.split = seeded: data\.source = .* is prepared with source"):
        prepare(DataConfig(source=folder, split="seeded"), tmp_path)


def test_the_content_decides_what_is_an_image_and_everything_else_is_listed(tmp_path, capsys):
    files = {
        "a/1.jfif": encoded(noise("L"), "JPEG"), "a/2": encoded(noise("L")), "b/3.txt": encoded(noise("L")),
        "b/4.png": encoded(noise("L"), "GIF"), "a/README.md": b"# images", "b/Thumbs.db": b"P5 is no image",
        "a/.hidden.png": encoded(noise("L")), "b/5.heic": b"\0\0\0\x18ftypheic", "LICENSE": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    line = refused(capsys, tmp_path / "source", tmp_path / "dest")
    assert "1 of 5 images are rejected (1 .heic), the first b/5.heic (not an image of the formats" in line
    found = prepared(tmp_path / "source", tmp_path / "dest", "--max-rejected", 0.2, "--heldout-fraction", 0.5)
    assert sorted(found.ids("train") + found.ids("heldout")) == ["a/1.jfif", "a/2", "b/3.txt", "b/4.png"]
    assert found.info.class_names == ("a", "b")
    assert found.info.files == {
        "used": {".jfif": 1, ".png": 1, ".txt": 1, "without suffix": 1},
        "rejected": {".heic": 1},
        "left out": {".db": 1, ".md": 1, "hidden": 1, "without suffix": 1},
    }
    listed = {row["path"]: row["kind"] for row in pq.read_table(tmp_path / "dest/rejected.parquet").to_pylist()}
    assert listed.pop("b/5.heic") == "rejected"
    assert listed == dict.fromkeys(["LICENSE", "a/.hidden.png", "a/README.md", "b/Thumbs.db"], "left out")
    assert "left out: 1 .db, 1 .md, 1 hidden, 1 without suffix" in capsys.readouterr().out


def test_labels_come_from_metadata_where_there_are_some(tmp_path):
    for name, content in [("1", many(4)[0]), ("2", many(4)[1]), ("deep/3", many(4)[2]), ("deep/4", many(4)[3])]:
        (tmp_path / f"source/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"source/{name}.png").write_bytes(content)
    (tmp_path / "source/metadata.csv").write_text(
        "file_name,label\n1.png,bee\n2.png,ant\ndeep/3.png,ant\ndeep/4.png,bee\n"
    )
    found = prepared(tmp_path / "source", tmp_path / "dest", "--heldout-fraction", 0.5)
    labels = {name: label for name, (_, label) in by_id(found).items()}
    assert labels == {"1.png": 1, "2.png": 0, "deep/3.png": 0, "deep/4.png": 1}
    assert found.info.class_names == ("ant", "bee")
    without = prepared(tmp_path / "source/deep", tmp_path / "without", "--label-column", "none")
    assert without.info.classes == 0


def test_images_that_use_few_levels_are_pointed_out(tmp_path, capsys):
    for name, levels in {"twelve": np.uint16(4095), "map": np.uint8(20), "dark": np.uint16(20)}.items():
        for number in range(3):
            pixels = np.full((4, 4), levels)
            pixels[0, number] = 0
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    assert prepared(tmp_path / "twelve", tmp_path / "a").info.peak == 4095
    assert "use 0 to 4095 of 0 to 65535, and become 0 to 16 of 0 to 255" in capsys.readouterr().out
    assert prepared(tmp_path / "twelve", tmp_path / "b", "--white-level", 4095).info.notes == ()
    (note,) = prepared(tmp_path / "map", tmp_path / "c").info.notes
    assert note == "the images use 0 to 20 of 0 to 255: are they label maps, or too dark?"
    (note,) = prepared(tmp_path / "dark", tmp_path / "d").info.notes[:1]
    assert note.endswith("are they label maps? If 20 is nearly white, say so with --white-level 31")


def test_class_names_that_differ_between_files_are_refused(tmp_path, capsys):
    parquet(tmp_path / "source/a.parquet", many(4), [0, 1, 0, 1], names=["cat", "dog"])
    parquet(tmp_path / "source/b.parquet", many(4), [0, 1, 0, 1], names=["dog", "cat"])
    line = refused(capsys, tmp_path / "source", tmp_path / "dest")
    assert "the classes of 'label' differ: cat, dog in a.parquet, dog, cat in b.parquet" in line
    parquet(tmp_path / "source/b.parquet", many(4), [0, 1, 0, 1])
    assert "cat, dog in a.parquet, no names in b.parquet" in refused(capsys, tmp_path / "source", tmp_path / "dest")


@pytest.mark.parametrize("label", [2**31, 2**63 + 5])
def test_a_label_that_is_no_class_is_one_line(tmp_path, capsys, label):
    source = parquet(tmp_path / "raw.parquet", many(2), pa.array([1, label], pa.uint64()))
    line = refused(capsys, source, tmp_path / "dest")
    assert f"raw.parquet, row group 0: row 1 has label {label}; allowed: 0 to K - 1" in line


def test_labels_that_are_not_utf8_are_one_line(tmp_path, capsys):
    texts = pa.array([b"cat", b"\xff\xfe"], pa.binary())
    broken = pa.StringArray.from_buffers(2, texts.buffers()[1], texts.buffers()[2])
    source = parquet(tmp_path / "raw.parquet", many(2), broken)
    line = refused(capsys, source, tmp_path / "dest")
    assert "raw.parquet, row group 0: " in line
    assert "utf" in line.lower()


def test_names_of_classes_cannot_reach_the_terminal_as_anything_but_text(tmp_path, capsys):
    source = parquet(tmp_path / "raw.parquet", many(4), ["\x1b[31mred", "blue\n", "\x1b[31mred", "blue\n"])
    prepared(source, tmp_path / "dest", "--heldout-fraction", 0.5)
    shown = capsys.readouterr().out
    assert "\\x1b[31mred" in shown
    assert "\x1b" not in shown


def test_paths_instead_of_images_are_named(tmp_path, capsys):
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), tmp_path / "paths.parquet")
    line = refused(capsys, tmp_path / "paths.parquet", tmp_path / "dest")
    assert "no image column" in line
    assert "column 'image' holds text" in line
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array([{"bytes": None, "path": "x/1.png"}] * 2, kind)})
    pq.write_table(table, tmp_path / "structs.parquet")
    assert "structs.parquet:0 (a path without content: 'x/1.png')" in refused(
        capsys, tmp_path / "structs.parquet", tmp_path / "dest"
    )


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    source = parquet(tmp_path / "raw.parquet", many(6), rows=3)
    with small_disk(tmp_path / "small", "64k") as small:
        (small / "dest").mkdir()
        ballast = fill(small)
        assert main(["prepare", source, str(small / "dest")]) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "No space left on device" in errors
        assert f"{small}/dest" in errors
        ballast.unlink()
        assert prepared(source, small / "dest", "--heldout-fraction", 0.5).info.train == 3


def test_what_an_earlier_version_prepared_is_taken_as_it_is(tmp_path, capsys):
    """Version 1 took every top folder as a class, and files by their suffix."""
    for name in ("train/1.png", "train/2.png", "val/3.png", "val/4.png", "notes.txt"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(
            b"text" if name.endswith("txt") else encoded(noise("L", seed=len(name)))
        )
    data = DataConfig(source=str(tmp_path / "source"), heldout_fraction=0.5)
    settings = {
        "source": str(tmp_path / "source"), "heldout_fraction": 0.5, "split_seed": 0, "size": None, "channels": "auto",
        "image_column": None, "label_column": None,
    }  # fmt: skip
    paths = [tmp_path / "source" / name for name in ("train/1.png", "train/2.png", "val/3.png", "val/4.png")]
    files = [
        (str(path.relative_to(tmp_path / "source")), path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    plan = {"version": [2, 1], "settings": settings, "files": files}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    made = prepared(tmp_path / "source/train", tmp_path / "storage/datasets" / digest[:16], "--heldout-fraction", 0.5)
    manifest = made.folder / "dataset.json"
    manifest.write_text(manifest.read_text().replace(made.info.plan, digest))
    found = prepare(data, tmp_path / "storage")
    assert found.info.fingerprint == made.info.fingerprint
    assert "prepared by an earlier version" in capsys.readouterr().out
    assert prepare(data, tmp_path / "other").info.split == "source"


def test_storage_inside_the_source_is_refused(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(noise("L")))
    (tmp_path / "link").symlink_to(tmp_path)
    for storage in (tmp_path, tmp_path / "runs", tmp_path / "link/runs"):
        with pytest.raises(InputError, match=r"run\.storage = .*: lies inside data\.source"):
            prepare(DataConfig(source=str(tmp_path)), storage)


@pytest.mark.parametrize(
    ("files", "said"), [([b"bad", None, b""], "no usable image among 3"), ([], "contains no images")]
)
def test_a_source_without_a_good_row_is_refused(tmp_path, capsys, files, said):
    source = parquet(tmp_path / "raw.parquet", files)
    assert said in refused(capsys, source, tmp_path / "dest", "--max-rejected", 1)


def test_a_parquet_file_with_broken_pages_is_refused(tmp_path, capsys):
    source = Path(parquet(tmp_path / "raw.parquet", many(20)))
    content = bytearray(source.read_bytes())
    content[4:200] = bytes(196)
    source.write_bytes(content)
    assert "data.source: raw.parquet, row group 0: " in refused(capsys, source, tmp_path / "dest")


@pytest.mark.parametrize(("name", "shape", "classes"), [("mnist5k", (1, 28, 28), 10), ("emoji32", (3, 32, 32), 10)])
def test_real_data(tmp_path, name, shape, classes):
    source = SHARED / f"{name}.parquet"
    if not source.is_file():
        pytest.skip(f"{source} is not there; it is for developers, and never committed")
    dataset = prepared(source, tmp_path / "dest")
    assert (dataset.info.image_shape, dataset.info.classes, dataset.info.rejected) == (shape, classes, 0)
    assert dataset.info.train + dataset.info.heldout == pq.read_metadata(source).num_rows
