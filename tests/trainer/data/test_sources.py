"""What a source is found to be without reading an image: its files, its columns, its classes; and what is refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.images import encoded, noise, parquet
from trainer.config.data import DataConfig
from trainer.data import files
from trainer.data.__main__ import main
from trainer.data.files import scan_files
from trainer.errors import InputError


def table(folder, **columns) -> str:
    path = folder / "raw.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_units_are_row_groups_in_the_order_of_files(tmp_path):
    parquet(tmp_path / "b.parquet", [b"x"] * 5, rows=2)
    parquet(tmp_path / "a.parquet", [b"x"] * 3, rows=2)
    partitions = scan_files(DataConfig(source=str(tmp_path))).partitions
    assert [(partition.number, *partition.files, partition.row_group, partition.first) for partition in partitions] == [
        (0, "a.parquet", 0, 0), (1, "a.parquet", 1, 2),
        (2, "b.parquet", 0, 0), (3, "b.parquet", 1, 2), (4, "b.parquet", 2, 4),
    ]  # fmt: skip


def test_units_of_a_folder_are_so_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FILES_PER_PARTITION", 2)
    for name in "cab":
        (tmp_path / f"{name}.png").touch()
    found = scan_files(DataConfig(source=str(tmp_path)))
    assert [partition.files for partition in found.partitions] == [("a.png", "b.png"), ("c.png",)]
    assert (found.labels, found.class_names) == (None, ())


BYTES, NUMBERS = [b"x", b"y"], [1, 2]
STRUCT = pa.array([{"bytes": b"x", "path": "x"}] * 2)


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"image": STRUCT, "label": NUMBERS}, {}, ("image", "label", "integer")),
        ({"picture": BYTES, "caption": ["a", "b"]}, {}, ("picture", None, None)),
        ({"picture": BYTES, "class": pa.array(["a", "b"]).dictionary_encode()}, {}, ("picture", "class", "text")),
        ({"one": STRUCT, "two": BYTES, "kind": NUMBERS}, {"image_column": "two", "label_column": "kind"},
         ("two", "kind", "integer")),
        ({"image": STRUCT, "label": NUMBERS}, {"label_column": "none"}, ("image", None, None)),
    ],
)  # fmt: skip
def test_columns_are_found_or_named(tmp_path, columns, settings, expected):
    found = scan_files(DataConfig(source=table(tmp_path, **columns), **settings))
    assert (found.image_column, found.label_column, found.labels) == expected


def test_class_labels_are_found_by_the_names_that_datasets_wrote(tmp_path):
    source = parquet(tmp_path / "a.parquet", [b"x"] * 2, [0, 1], names=["cat", "dog"], label="animal")
    found = scan_files(DataConfig(source=source))
    assert (found.label_column, found.class_names) == ("animal", ("cat", "dog"))


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"text": ["a", "b"]}, {}, "no image column; allowed: one column of struct<bytes, path> or binary"),
        ({"one": STRUCT, "two": BYTES}, {}, "several image columns: one, two; allowed: .* data.image_column"),
        ({"image": STRUCT}, {"image_column": "picture"}, "data.image_column = 'picture': no such column; allowed: im"),
        ({"image": STRUCT, "n": NUMBERS}, {"image_column": "n"}, "data.image_column = 'n': is int64; allowed: struct"),
        ({"image": STRUCT}, {"label_column": "kind"}, "data.label_column = 'kind': no such column; allowed: image"),
        ({"image": STRUCT, "label": NUMBERS, "class": NUMBERS}, {}, "several label columns: label, class"),
        ({"image": STRUCT, "label": [0.5, 1.0]}, {}, "labels without classes: column 'label' is double"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_told_are_refused(tmp_path, columns, settings, said):
    with pytest.raises(InputError, match=said):
        scan_files(DataConfig(source=table(tmp_path, **columns), **settings))


def test_files_of_other_columns_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", [b"x"])
    parquet(tmp_path / "b.parquet", [b"x"], image="picture")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'image' like a\.parquet"):
        scan_files(DataConfig(source=str(tmp_path)))


def bad_arguments(folder):
    """What is refused, and what is said."""
    (folder / "empty").mkdir()
    parquet(folder / "both/a.parquet", [b"x"])
    (folder / "both/a.png").touch()
    (folder / "mixed/cats").mkdir(parents=True)
    for name in ("mixed/cats/a.png", "mixed/b.png"):
        (folder / name).write_bytes(encoded(noise("L")))
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    (folder / "old").mkdir()
    (folder / "old/dataset.json").write_text('{"format_version": 1}')
    (folder / "taken").mkdir()
    (folder / "taken/thesis.tex").touch()
    good, dest = parquet(folder / "good.parquet", [b"x"]), str(folder / "dest")
    return {
        "missing": (["/no/such", dest], "data.source = '/no/such': no such data; allowed: digits"),
        "missing-parquet": (["/no/such.parquet", dest], "data.source = '/no/such.parquet': no such data"),
        "empty": ([str(folder / "empty"), dest], "contains no images; allowed: images, or Parquet files"),
        "both": ([str(folder / "both"), dest], "holds both Parquet files and images"),
        "no-class": ([str(folder / "mixed"), dest], "labels without classes: 'b.png' is in no sub-folder"),
        "broken": ([str(folder / "broken.parquet"), dest], "broken.parquet': "),
        "old-format": ([str(folder / "old"), dest], "format_version = 1; allowed: 2"),
        "old-destination": ([good, str(folder / "old")], "format_version = 1; allowed: 2"),
        "taken": ([good, str(folder / "taken")], "holds thesis.tex; allowed: a new or an empty folder"),
        "inside": ([str(folder), str(folder / "both" / "dest")], "lies inside SOURCE; allowed: a folder outside it"),
        "unwritable": ([good, "/proc/dest"], "/proc/dest: "),
        "columns": ([str(folder / "mixed" / "cats"), dest, "--label-column", "x"], "data.label_column = 'x'"),
        "size": ([good, dest, "--size", "0"], "--size = 0: allowed: greater than or equal to 1"),
        "fraction": ([good, dest, "--heldout-fraction", "1"], "--heldout-fraction = 1.0: allowed: less than 1"),
        "rejected": ([good, dest, "--max-rejected", "2"], "--max-rejected = 2.0: allowed: 0 to 1"),
    }  # fmt: skip


NAMES = (
    "missing", "missing-parquet", "empty", "both", "no-class", "broken", "old-format", "old-destination", "taken",
    "inside", "unwritable", "columns", "size", "fraction", "rejected",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, name):
    arguments, said = bad_arguments(tmp_path)[name]
    assert main(["prepare", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert said in errors
    assert not (tmp_path / "dest" / "dataset.json").exists()


def test_a_prepared_folder_is_shown(tmp_path, capsys):
    assert main(["prepare", "digits", str(tmp_path / "dest")]) == 0
    prepared = capsys.readouterr().out
    assert main(["show", str(tmp_path / "dest")]) == 0
    assert capsys.readouterr().out == prepared
    lines = prepared.splitlines()
    assert "1437 images to train on, 360 held out, 0 rejected" in lines[0]
    assert lines[5].split() == ["0", "142", "36"]
    assert len(lines) == 15


@pytest.mark.parametrize("place", ["/no/such", "."])
def test_a_folder_that_is_not_prepared_is_not_shown(capsys, place):
    assert main(["show", place]) == 2
    assert "no prepared data set" in capsys.readouterr().err


def test_what_is_prepared_is_not_prepared_again(tmp_path, capsys):
    main(["prepare", "digits", str(tmp_path / "dest")])
    assert main(["prepare", str(tmp_path / "dest"), str(tmp_path / "other")]) == 2
    assert "is already a prepared data set" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [word for word in ("rejected.parquet", "exit codes", "s3://bucket") if word not in text] == []
