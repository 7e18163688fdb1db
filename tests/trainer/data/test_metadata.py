"""Labels from metadata files: those that others write are read, what cannot be read is refused by the file's name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config.data import DataConfig
from trainer.data.metadata import read_metadata
from trainer.data.store import Store
from trainer.errors import InputError

IMAGES = ("a.png", "sub/b.png", "sub/c.png")


def read(folder, name, content, **settings):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_metadata(Store(str(folder)), [*IMAGES, name], DataConfig(source=str(folder), **settings))


def table(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


NAMED = {"a.png": "ant", "sub/b.png": "bee", "sub/c.png": "ant"}
NUMBERED = {"a.png": 0, "sub/b.png": 1, "sub/c.png": 0}


@pytest.mark.parametrize(
    ("name", "content", "settings", "labels"),
    [
        ("metadata.csv", "file_name,label\na.png,ant\nsub/b.png,bee\nsub/c.png,ant\n", {}, NAMED),
        ("metadata.csv", "\ufefffile_name,label\r\na.png,0\r\nsub/b.png,1\r\nsub/c.png,0\r\n", {}, NUMBERED),
        ("sub/metadata.csv", "file_name,class\n../a.png,0\nb.png,1\n./c.png,0\n", {}, NUMBERED),
        (
            "metadata.jsonl",
            "\n".join(json.dumps({"file_name": name, "label": label, "text": "x"}) for name, label in NUMBERED.items()),
            {},
            NUMBERED,
        ),
        ("metadata.csv", "file_name,kind,label\na.png,ant,7\nsub/b.png,bee,7\n", {"label_column": "kind"},
         {"a.png": "ant", "sub/b.png": "bee"}),
        ("metadata.parquet", table(file_name=list(NAMED), target=list(NAMED.values())), {}, NAMED),
        ("dataset.json", json.dumps({"labels": [[name, label] for name, label in NUMBERED.items()]}), {}, NUMBERED),
        ("dataset.json", '{"labels": null}', {}, None),
        ("metadata.csv", "file_name,label\na.png,0\nsub/b.png,\nsub/c.png,-1\n", {}, {"a.png": 0, "sub/c.png": -1}),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 0, "text": "\u2028"}', {}, {"a.png": 0}),
        ("metadata.csv", "image,label\na.png,0\n", {"label_column": "none"}, None),
        ("metadata.csv", "file_name,text\na.png,an ant\n", {}, None),
        ("metadata.csv", "file_name,label\na.png,ant\n", {"label_column": "none"}, None),
    ],
)  # fmt: skip
def test_labels_are_read(tmp_path, name, content, settings, labels):
    found = read(tmp_path, name, content, **settings)
    assert found.files == (name,)
    assert found.labels == labels
    assert found.notes == (f"labels are those of {name}" if labels else f"{name} has no labels, and is not used",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", "path,label\na.png,0\n", r"metadata\.csv: row 1 has no file_name"),
        ("metadata.csv", "file_name,label\nz.png,0\n", r"metadata\.csv: names 'z\.png', which is not in the source"),
        ("metadata.csv", "file_name,label\n/etc/passwd,0\n", "names '/etc/passwd', which is not in the source"),
        ("metadata.csv", "file_name,label\na.png,0\na.png,1\n", r"'a\.png' has two labels, '0' and '1'"),
        ("metadata.csv", "file_name,label,target\na.png,1,1\n", "several label columns: label, target"),
        ("metadata.csv", b"file_name,label\n\xff\xfe", r"metadata\.csv: 'utf-8' codec"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": [1, 0]}', r"label holds '\[1, 0\]'"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 1.5}', "label holds '1\\.5'"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": true}', "label holds 'True'"),
        ("metadata.jsonl", "not json", r"metadata\.jsonl: Expecting value"),
        ("metadata.jsonl", "[1]", "row 1 has no file_name"),
        ("metadata.parquet", b"PAR1", r"metadata\.parquet: "),
        ("dataset.json", '{"labels": [["a.png", [0.5, 0.5]]]}', r"labels holds '\[0\.5, 0\.5\]'"),
        ("dataset.json", '{"labels": [{"a.png": 1}]}', r"allowed: \[\[path, label\], \.\.\.\]"),
        ("sub/dataset.json", "{}", "neither the manifest of a prepared data set nor a list of labels"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, content, said):
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_a_label_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"data\.label_column = 'x': .*no such column; allowed: label, text"):
        read(tmp_path, "metadata.csv", "file_name,label,text\na.png,0,hi\n", label_column="x")
