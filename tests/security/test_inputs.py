"""Files from elsewhere: they take bounded memory, name nothing outside of their folder, and tell a terminal nothing."""

import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.lib import format as npy
from PIL import Image
from pyarrow import ipc
from rich.table import Table
from rich.text import Text

from cluster import logs as job_logs, views
from cluster.errors import InputError as QueueInputError
from cluster.request import read_array
from diffusion.private_folder import write_private
from diffusion.terminal import PlainConsole, visible
from sampler.__main__ import main as sampler
from tests.conftest import ROOT
from tests.trainer.data.images import encoded, noise
from tests.tuning import conftest as sweeps
from trainer.config.data import DataConfig
from trainer.config.load import apply_sets, load_config, read_yaml
from trainer.data.__main__ import main as data_command
from trainer.data.arrays import load_array
from trainer.data.dataset import open_dataset
from trainer.data.files import read_partition, scan_files
from trainer.data.listing import list_source
from trainer.data.manifest import FILE
from trainer.data.metadata import read_metadata
from trainer.data.prepare import prepare
from trainer.data.store import Store
from trainer.errors import InputError
from trainer.evaluate.references.published import load_published
from trainer.run.identity import read_run, read_summary
from trainer.run.journal import Journal
from trainer.run.manifest import CheckpointError, is_whole, read_manifest, step_folder, with_digest
from trainer.run.paths import RunPaths
from trainer.runtime.memory import at_most
from trainer.worker.watchdog import Watchdog
from tuning.driver import execute

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
BOUNDED = """
import sys
from pathlib import Path
from tests.security.peak import peak
{code}
before = peak()
try: read(Path(sys.argv[1]))
except Error as error: print(peak() - before, error)
"""
READERS = {
    "trainer": "from trainer.config.load import read_yaml as read; from trainer.errors import InputError as Error",
    "queue": "from cluster.request import read_array as read; from cluster.errors import InputError as Error",
}


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize(
    "text", [LAUGHS, "- a: &a [x]\n" + LAUGHS, "a: &a [*a]", "- &a {b: *a}", "[" * 10**5], ids=range(5)
)
def test_yaml_that_stands_for_more_than_it_holds(tmp_path: Path, reader: str, text: str):
    (tmp_path / "file.yaml").write_text(text)
    code = BOUNDED.format(code=READERS[reader])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file.yaml")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    kilobytes, _, words = done.stdout.partition(" ")
    assert int(kilobytes) < 100_000, done.stderr
    assert re.search(r"values with its aliases|contains itself|not valid YAML|no YAML", words)
    assert len(words) < 1000


def test_yaml_with_a_few_aliases_is_as_written(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("base: &base {a: 1, b: [1, 2]}\none: *base\ntwo: {<<: *base, a: 3}\n")
    base = {"a": 1, "b": [1, 2]}
    assert read_yaml(tmp_path / "run.yaml") == {"base": base, "one": base, "two": {**base, "a": 3}}
    (tmp_path / "rows.yaml").write_text("- &row {lr: 0.1, seed: 1}\n- {<<: *row, seed: 2}\n")
    assert read_array(tmp_path / "rows.yaml") == [{"lr": "0.1", "seed": "1"}, {"lr": "0.1", "seed": "2"}]


def test_the_words_of_an_array_are_short(tmp_path: Path):
    (tmp_path / "rows.yaml").write_text(f"- {{a: &a {'x' * 2**21}}}\n" + "- {a: *a}\n" * 100)
    with pytest.raises(QueueInputError, match=r"row 1: .{1,250}: allowed: a list of 1 to 10000 mappings"):
        read_array(tmp_path / "rows.yaml")
    (tmp_path / "rows.yaml").write_text("- {a: 1}\n" * 2**21)
    with pytest.raises(QueueInputError, match="more than 16 MiB"):
        read_array(tmp_path / "rows.yaml")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert data_command(["prepare", "digits", str(folder)]) == 0
    return folder


def change(folder: Path, where: str, value: object) -> None:
    """Change one value of a prepared data set's manifest."""
    manifest = json.loads((folder / FILE).read_text())
    *way, last = where.split(".")
    place: Any = manifest
    for name in way:
        place = place[int(name) if name.isdecimal() else name]
    place[last] = value
    (folder / FILE).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../other/train-00000.arrow", "a/../../b", "..", ".", "", "a\0b", "C:\\x", "a/b", "~", "-\n"],
)
def test_a_data_set_names_files_of_its_own_folder_alone(digits: Path, tmp_path: Path, name: str):
    shutil.copytree(digits, tmp_path / "digits")
    manifest = json.loads((tmp_path / "digits" / FILE).read_text())
    manifest["shards"]["train"][0]["name"] = name
    (tmp_path / "digits" / FILE).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"names a shard .* allowed: files of its own folder"):
        open_dataset(tmp_path / "digits")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "/../../../data/"), ("fingerprint", "A" * 64), ("plan", "../x"), ("sha256", "/etc/passwd"),
        ("sha256", "0" * 63), ("classes", 10**10), ("classes", -1), ("classes", 1.5), ("train", True),
        ("image_shape", [1, 8, 10**9]), ("image_shape", [1, 8, "8"]),
    ],
)  # fmt: skip
def test_what_files_and_memory_are_named_by_is_what_it_should_be(
    digits: Path, tmp_path: Path, field: str, value: object
):
    shutil.copytree(digits, tmp_path / "digits")
    manifest = json.loads((tmp_path / "digits" / FILE).read_text())
    (manifest["shards"]["train"][0] if field == "sha256" else manifest)[field] = value
    (tmp_path / "digits" / FILE).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"allowed: (SHA-256|whole numbers)"):
        open_dataset(tmp_path / "digits")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("train", 2**34, "has train = 17179869184; allowed: 1437, the rows of its 1 shards"),
        ("heldout", 2**40, "has heldout = 1099511627776; allowed: 360"),
        ("shards.train.0.rows", 2**34, r"has train = 1437; allowed: 17179869184"),
        ("shards.train.0.rows", "1437", r"shards\.train\.0\.rows = '1437': .* valid integer"),
        ("shards.train.0.bytes", 1.5, r"shards\.train\.0\.bytes = 1\.5: .* valid integer"),
        ("shards.train.0.more", 1, r"shards\.train\.0\.more = 1: "),
        ("class_names", [1] * 10, r"class_names\.0 = 1: .* valid string"),
        ("class_names", "0123456789", r"class_names = '0123456789': .* valid array"),
        ("class_counts", {"train": "1"}, r"class_counts\.train = '1': "),
        ("image_shape", [1, 8, 8, 1], r"image_shape"),
        ("mean", ["x"], r"mean\.0 = 'x': .* valid number"),
    ],
)  # fmt: skip
def test_a_data_set_has_as_many_images_as_its_shards(
    digits: Path, tmp_path: Path, field: str, value: object, said: str
):
    shutil.copytree(digits, tmp_path / "digits")
    change(tmp_path / "digits", field, value)
    with pytest.raises(InputError, match=said):
        open_dataset(tmp_path / "digits")


@pytest.mark.parametrize("rows", [2**34, 1438, 1436])
def test_shards_have_as_many_rows_as_they_say(digits: Path, tmp_path: Path, rows: int):
    """Where the manifest agrees with itself, and the size of a shard with a hole in it, which takes no disk."""
    shutil.copytree(digits, tmp_path / "digits")
    change(tmp_path / "digits", "train", rows)
    change(tmp_path / "digits", "shards.train.0.rows", rows)
    if rows == 2**34:
        with pytest.raises(
            InputError, match=r"train-00000\.arrow with rows = 17179869184; allowed: 1 to \d{4}, for which"
        ):
            open_dataset(tmp_path / "digits")
        change(tmp_path / "digits", "shards.train.0.bytes", 2**41)
    dataset = open_dataset(tmp_path / "digits")
    for read in (dataset.images, dataset.labels, dataset.ids):
        with pytest.raises(InputError, match=rf"train-00000\.arrow: 1437 rows; allowed: {rows}, as dataset\.json says"):
            read("train")


def altered(folder: Path, kind: str) -> None:
    """Make a prepared folder another than it says."""
    shard = folder / "train-00000.arrow"
    if kind == "fingerprint":  # that of somebody else's data, whose classifier and references would be named by it
        change(folder, "fingerprint", "e" * 64)
    elif kind == "digest":
        change(folder, "shards.train.0.sha256", "e" * 64)
    elif kind == "elsewhere":
        change(folder, "location", "s3://bucket/other")
    elif kind == "link":
        shard.rename(folder.parent / "private")
        shard.symlink_to(folder.parent / "private")
    else:
        before = shard.stat()
        content = bytearray(shard.read_bytes())
        content[content.index(b"digits:") - 200] ^= 1  # a pixel or a label
        shard.write_bytes(content)
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


REFUSED = {
    "fingerprint": "has fingerprint = e{64}; allowed: [0-9a-f]{64}, that of its images and labels",
    "digest": r"train-00000\.arrow: SHA-256 [0-9a-f]{16}…; allowed: e{16}…, as dataset\.json says",
    "content": r"train-00000\.arrow: SHA-256 ",
    "link": r"train-00000\.arrow: missing or incomplete, or a link; allowed: a file of \d+ bytes",
    "elsewhere": "has location = 's3://bucket/other'; allowed: none here",
}


@pytest.mark.parametrize("kind", list(REFUSED))
@pytest.mark.parametrize("before", [False, True], ids=["at first", "once it was verified"])
def test_a_prepared_folder_is_what_it_claims_to_be(digits: Path, tmp_path: Path, kind: str, before: bool):
    shutil.copytree(digits, tmp_path / "digits")
    data = DataConfig(source=str(tmp_path / "digits"))
    if before:
        prepare(data, tmp_path / "storage")
    altered(tmp_path / "digits", kind)
    with pytest.raises(InputError, match=REFUSED[kind]):
        prepare(data, tmp_path / "storage")


def test_a_prepared_folder_is_verified_once(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(digits, tmp_path / "digits")
    data = DataConfig(source=str(tmp_path / "digits"))
    first = prepare(data, tmp_path / "storage")
    assert "verifying" in capsys.readouterr().out
    monkeypatch.setattr("trainer.data.fingerprint.file_sha256", lambda _: pytest.fail("read again"))
    assert prepare(data, tmp_path / "storage") == first
    assert capsys.readouterr().out == ""


def test_what_is_kept_of_data_on_s3_is_named_by_what_is_verified(digits: Path):
    """Their fingerprint is only claimed; each shard is compared with its digest by whoever reads it."""
    here = open_dataset(digits).info
    there = replace(here, location="s3://bucket/digits")
    shards = {split: tuple(replace(each, sha256="e" * 64) for each in here.shards[split]) for split in here.shards}
    assert here.content == here.fingerprint
    assert len({here.content, there.content, replace(there, shards=shards).content}) == 3
    assert replace(there, location="s3://other", fingerprint="e" * 64).content == there.content


def damaged(kind: str, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, ipc.IpcWriteOptions | None]:
    """A shard by somebody who means harm."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    if kind == "compressed":
        return batch, ipc.IpcWriteOptions(compression="zstd")
    if kind == "narrow":
        columns["image"] = pa.array([b"x"] * len(batch), pa.binary(1))
    elif kind == "labels":
        columns["label"] = pa.array(["x"] * len(batch))
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), None


@pytest.mark.parametrize("kind", ["offsets", "narrow", "labels", "compressed", "nothing", "no batch"])
def test_a_shard_is_looked_at_before_it_is_believed(digits: Path, tmp_path: Path, kind: str):
    shutil.copytree(digits, tmp_path / "digits")
    [shard] = (tmp_path / "digits").glob("train*")
    batch = ipc.open_file(pa.BufferReader(shard.read_bytes())).get_batch(0)
    changed, options = damaged(kind, batch)
    with ipc.new_file(str(shard), changed.schema, options=options) as file:
        if kind != "no batch":
            file.write_batch(changed)
    if kind == "offsets":  # of which Arrow itself looks at the last alone
        offsets = batch.column("id").buffers()[1].to_pybytes()
        wrong = offsets[:4] + (2**30).to_bytes(4, "little") + offsets[8:]
        assert shard.read_bytes().count(offsets) == 1
        shard.write_bytes(shard.read_bytes().replace(offsets, wrong))
    if kind == "nothing":
        shard.write_bytes(b"ARROW1\0\0" + bytes(100))
    dataset = open_dataset(tmp_path / "digits")
    with pytest.raises(InputError, match=r"train-00000\S*: (not a shard of a prepared data set|images of 1 bytes)"):
        dataset.images("train")


def test_short_rows_of_a_table_take_no_more_than_they_hold(tmp_path: Path):
    """Written out, with each column in each row, they would be ten million values."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise("L", seed=number)))
    header = ",".join(["file_name", "label", *(f"c{number}" for number in range(5000))])
    rows = "\n".join(f"{number % 3}.png,{number % 3}" for number in range(2000))
    (tmp_path / "metadata.csv").write_text(f"{header}\n\n{rows}\n")
    code = (
        "import sys\nfrom trainer.config.data import DataConfig; from trainer.data.store import Store\n"
        "from trainer.data.metadata import read_metadata\n"
        "from tests.security.peak import peak\n"
        "before = peak()\n"
        "paths = ['0.png', '1.png', '2.png', 'metadata.csv']\n"
        "found = read_metadata(Store(sys.argv[1]), paths, DataConfig(source=sys.argv[1]))\n"
        "assert found.labels == {'0.png': 0, '1.png': 1, '2.png': 2}\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000


def test_an_empty_table_has_no_labels(tmp_path: Path):
    (tmp_path / "metadata.csv").touch()
    found = read_metadata(Store(str(tmp_path)), ["metadata.csv"], DataConfig(source=str(tmp_path)))
    assert (found.labels, found.notes) == (None, ("metadata.csv has no labels, and is not used",))


HOLES = {
    "x.png": "from trainer.data.files import read_partition, scan_files\n"
    "source = scan_files(DataConfig(source=folder))\n"
    "rows = [row for part in source.partitions for rows in read_partition(source, part) for row in rows]\n"
    "problem = rows[0].problem",
    "metadata.csv": "from trainer.data.files import scan_files; refused(scan_files, DataConfig(source=folder))",
    "metadata.jsonl": "from trainer.data.files import scan_files; refused(scan_files, DataConfig(source=folder))",
    "metadata.parquet": "from trainer.data.files import scan_files; refused(scan_files, DataConfig(source=folder))",
    "dataset.json": "from trainer.data.sources import check_source; refused(check_source, DataConfig(source=folder))",
    "run.yaml": "from trainer.config.load import read_yaml; refused(read_yaml, Path(folder, 'run.yaml'))",
    "run.json": "from trainer.run.identity import read_run; refused(read_run, Path(folder))",
    "checkpoints/step-00000003/manifest.json": "from trainer.run.identity import read_run; "
    "refused(read_run, Path(folder))",
    "denoising.json": "from tuning.screening import read_curve; refused(read_curve, Path(folder))",
    "journal.jsonl": "from trainer.run.journal import Journal; problem = 'cannot be read' * (not list(Journal("
    "Path(folder, 'journal.jsonl')).read()))",
    "evaluation.json": "from trainer.evaluate.comparison import read; refused(read, Path(folder), 'x')",
}


@pytest.mark.parametrize("name", list(HOLES))
def test_a_file_that_is_a_hole_is_not_read(tmp_path: Path, name: str):
    """60 GB that take no disk."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / name).open("wb") as hole:
        hole.truncate(60 * 2**30)
    code = (
        "import sys; from pathlib import Path; from tests.security.peak import peak\n"
        "from trainer.config.data import DataConfig; from trainer.errors import InputError\n"
        "folder = sys.argv[1]; problem = ''\n"
        "def refused(read, *arguments):\n"
        "    global problem\n"
        "    try: read(*arguments)\n"
        "    except InputError as error: problem = str(error)\n"
        f"before = peak()\n{HOLES[name]}\nprint(peak() - before, problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    kilobytes, _, words = done.stdout.partition(" ")
    assert int(kilobytes) < 300_000
    assert re.search(r"allowed: at most \d+|cannot be read", words)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[]", '{"step": "x", "data": []}'])
def test_records_of_a_run_that_are_none(tmp_path: Path, text: str):
    paths = RunPaths(tmp_path)
    manifest = step_folder(paths.checkpoints, 3) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    paths.summary.parent.mkdir()
    for file in (paths.identity, paths.summary, manifest):
        file.write_text(text)
    paths.journal.write_text(f"{text}\n")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        read_run(tmp_path)
    assert read_summary(paths) is None
    assert list(Journal(paths.journal).read()) == []
    with pytest.raises(CheckpointError):
        read_manifest(manifest.parent)


@pytest.mark.parametrize("values", [{}, {"step": "x"}, {"step": 3}, {"step": 3, "method_sha256": "a", "data": []}])
def test_a_manifest_that_agrees_with_itself_need_not_be_one(tmp_path: Path, values: dict[str, Any]):
    manifest = step_folder(RunPaths(tmp_path).checkpoints, 3) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps(with_digest({"format_version": 3, "files": [], "config": {}, **values})))
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        read_run(tmp_path)
    assert not is_whole(manifest.parent)


@pytest.mark.parametrize("text", ["[" + "x," * 10**6 + "]", "".join(f"k{number}: 1\n" for number in range(10**5))])
def test_yaml_of_many_values_is_not_composed(tmp_path: Path, text: str):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(InputError, match="more than 100000 values; allowed: at most 100000"):
        read_yaml(tmp_path / "file.yaml")


def test_keys_are_counted_once(tmp_path: Path):
    keys = "".join(f"k{number}: 1\n" for number in range(49_000))
    (tmp_path / "file.yaml").write_text(keys)
    assert len(read_yaml(tmp_path / "file.yaml")) == 49_000
    (tmp_path / "file.yaml").write_text(f"{keys}k5: 2\n")
    with pytest.raises(InputError, match="'k5' is given twice"):
        read_yaml(tmp_path / "file.yaml")
    (tmp_path / "file.yaml").write_text("? [a]\n: 1\n")
    with pytest.raises(InputError, match="unhashable key"):
        read_yaml(tmp_path / "file.yaml")


@pytest.mark.parametrize("name", ["x.png", "metadata.csv", "dataset.json"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_a_link_to_a_device_is_no_file(tmp_path: Path, name: str, target: str):
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "images" / name).symlink_to(target if target.startswith("/") else tmp_path / target)
    (tmp_path / "images" / "broken.png").symlink_to(tmp_path / "gone")
    listing = list_source(Store(str(tmp_path / "images")))
    assert [file.path for file in listing.files] == ["broken.png"]
    assert (name, "neither a file nor a folder") in listing.left_out


def test_images_that_expand_are_decoded_a_few_at_a_time(tmp_path: Path):
    """256 rows of one picture of 12 million pixels: 9 GB, if they are held together, from 40 kB."""
    picture = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(picture, "PNG")
    pq.write_table(
        pa.table({"image": [picture.getvalue()] * 256}), tmp_path / "bomb.parquet"
    )  # once, in its dictionary
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    code = (
        "import sys; from pathlib import Path; from tests.security.peak import peak\n"
        "from trainer.config.data import DataConfig; from trainer.data.files import scan_files, read_partition\n"
        "from trainer.data.staging import _decoded, _in_parts, PreparationTask\n"
        "source = scan_files(DataConfig(source=sys.argv[1]))\n"
        "task = PreparationTask(source, sys.argv[2], 'x', (4000, 3000), 'auto', None)\n"
        "before = peak()\n"
        "batches = read_partition(source, source.partitions[0])\n"
        "rows = (_decoded(row, task, task.size) for batch in batches for row in batch)\n"
        "parts = _in_parts(rows)\n"
        "for _ in range(3): assert len(next(parts)) == 2\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.parquet"), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000_000


def test_a_data_set_is_nowhere_else_on_this_machine(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path / "digits")
    manifest = json.loads((tmp_path / "digits" / FILE).read_text())
    (tmp_path / "digits" / FILE).write_text(json.dumps({**manifest, "location": "/etc"}))
    with pytest.raises(InputError, match="has location = '/etc'; allowed: none, or an s3:// prefix"):
        open_dataset(tmp_path / "digits")


ODD = [
    "[false, true]",
    "[/]",
    "[red]x[/red]",
    ":smile:",
    "[link=file:///etc]x",
    "a\x1b[2Jb",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202eabc",
]


@pytest.mark.parametrize("text", ODD)
def test_words_from_data_are_shown_as_they_are(text: str):
    """In a line, in a cell and in a heading, on a terminal too."""
    for console in (PlainConsole, views._PlainConsole):
        out = io.StringIO()
        options: dict[str, Any] = (
            {} if console is PlainConsole else {"markup": False, "emoji": False, "highlight": False}
        )
        plain = console(file=out, force_terminal=True, width=200, no_color=True, **options)
        table = Table()
        table.add_column(text)
        table.add_row(Text(text, "bold"))
        plain.print(table)
        plain.print(Text.assemble((text, "red")))
        shown = out.getvalue()
        assert shown.count(visible(text).removesuffix("\\x07")) == 3  # rich itself leaves out some
        assert not set(shown) & {"\x07", "\x9b", "\u202e"}
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown


def test_tracebacks_and_stacks_are_their_users_alone(tmp_path: Path):
    """Both may show values; a run's other files, which colleagues read, follow the umask."""
    before = os.umask(0)
    try:
        (tmp_path / "error.log").touch(0o666)
        write_private(tmp_path / "error.log", "ValueError: hunter2\udc80")
        watchdog = Watchdog(tmp_path / "stacks" / "rank-0.txt", 1.0, 1.0)
    finally:
        os.umask(before)
    assert (tmp_path / "error.log").read_text() == "ValueError: hunter2\\udc80"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
    watchdog.close()


def test_the_traceback_of_a_sweep_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DUALVIEW_STORAGE", str(tmp_path / "storage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tuning.driver._run", fail)
    sweep = sweeps.made(tmp_path)
    for trial in sweep.trials:
        sweeps.finish(trial, 3.0, 0.1)
    before = os.umask(0)
    try:
        assert execute(sweep) == 1
    finally:
        os.umask(before)
    assert "ZeroDivisionError" in sweep.error.read_text()
    assert stat.S_IMODE(sweep.error.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ODD)
def test_a_checkpoint_tells_a_terminal_nothing(tmp_path: Path, text: str):
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": text}))
    with pytest.raises(CheckpointError, match="format version") as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", [each for each in ODD if "/" not in each])
def test_a_bar_of_progress_shows_a_name_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "200")
    assert sampler(["generate", f"./{text}", "--out", "x.png"]) == 2
    shown = capsys.readouterr().err
    assert (f"loading ./{text}" in shown) == text.isprintable()
    assert text.isprintable() or text not in shown


def test_output_on_a_terminal_moves_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    text = "\x1b[31mred\x1b[0m 50%\r100%\n\x1b[2J\x1b]52;c;aGk=\x07\x1b[8mhidden\x1b[5;8mhidden"
    job_logs._write(text)
    assert capsys.readouterr().out == text  # to a file or a pipe, all of it
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    job_logs._write(text)
    assert capsys.readouterr().out == (
        "\x1b[31mred\x1b[0m 50%\r100%\n\\x1b[2J\\x1b]52;c;aGk=\\x07\\x1b[8mhidden\\x1b[5;8mhidden"
    )


def statistics(file: Path, dtype: str, sides: tuple[int, ...], packing: int) -> None:
    """An .npz of zeros, written a part at a time."""
    with zipfile.ZipFile(file, "w", packing, compresslevel=1) as packed:
        for name, shape in (("mu", sides[:1]), ("sigma", sides)):
            with packed.open(f"{name}.npy", "w", force_zip64=True) as out:
                npy.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
                for _ in range(1 if name == "mu" else sides[0]):
                    out.write(bytes(np.dtype(dtype).itemsize * sides[-1]))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("integers", r"mu is int8; allowed: float32 or float64"),
        ("wide", r"mu is \(8192,\); allowed: \[d\] and \[d, d\] with d at most 2048"),
        ("deep", r"sigma is \(4, 4, 4\); allowed: \[d\] and \[d, d\]"),
        ("lzma", r"mu is encrypted or packed in another way"),
        ("encrypted", r"mu is encrypted or packed in another way"),
        ("a hole", r"274877906944 bytes; allowed: a file of at most 68719476736"),
        ("a directory", r"not an \.npz|takes more than 1 GiB"),
        ("a pipe", r"allowed: a file of at most"),
    ],
)
def test_statistics_take_no_more_than_those_of_an_extractor(tmp_path: Path, kind: str, said: str):
    """256 MB of small integers, from a file of 1 MB, would be 2 GB of float64, and several times that."""
    file = tmp_path / "statistics.npz"
    dtype, sides = {"integers": ("|i1", (16000, 16000)), "wide": ("<f4", (8192, 8192))}.get(kind, ("<f8", (4, 4)))
    if kind == "a pipe":
        os.mkfifo(file)
    else:
        sides = (4, 4, 4) if kind == "deep" else sides
        statistics(file, dtype, sides, zipfile.ZIP_LZMA if kind == "lzma" else zipfile.ZIP_DEFLATED)
        assert file.stat().st_size < 2_000_000
    if kind == "encrypted":
        content = bytearray(file.read_bytes())
        content[content.index(b"PK\1\2") + 8] |= 1
        file.write_bytes(content)
    elif kind == "a hole":
        with file.open("r+b") as hole:
            hole.truncate(2**38)
    elif kind == "a directory":  # of the archive's files, in a hole
        with file.open("wb") as hole:
            hole.seek(3 * 2**30)
            hole.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3 * 2**30, 0, 0))
    code = (
        "import sys; from pathlib import Path; from tests.security.peak import peak\n"
        "from trainer.evaluate.references.published import load_published\n"
        "before = peak()\n"
        "try: load_published(Path(sys.argv[1]))\n"
        "except ValueError as error: print(peak() - before, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    kilobytes, _, words = done.stdout.partition(" ")
    assert int(kilobytes) < 200_000
    assert re.search(said, words)


def test_the_size_of_a_file_is_no_reason_to_take_as_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Parquet file of 60 GB, of which nearly all is a hole before its footer."""
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    with (tmp_path / "x.parquet").open("wb") as file:
        file.write(content[:-footer])
        file.seek(60 * 2**30)
        file.write(content[-footer:])
    source = scan_files(DataConfig(source=str(tmp_path / "x.parquet")))
    asked = list[int]()

    @contextmanager
    def bounded(more: int) -> Iterator[None]:
        asked.append(more)
        yield

    monkeypatch.setattr("trainer.data.files.at_most", bounded)
    assert [len(rows) for rows in read_partition(source, source.partitions[0])] == [1]
    assert max(asked) == 16 * 2**30


READ = """
import resource, sys, pyarrow as pa
from tests.security.peak import peak
from trainer.config.data import DataConfig
from trainer.data.files import read_partition, scan_files
before = peak()
limits = resource.getrlimit(resource.RLIMIT_AS)
source = scan_files(DataConfig(source=sys.argv[1]))
try:
    print(sum(len(rows) for rows in read_partition(source, source.partitions[0])))
except pa.ArrowInvalid as error:
    print(peak() - before, error)
print(resource.getrlimit(resource.RLIMIT_AS) == limits)
"""


def read_apart(file: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


def test_a_small_file_that_expands_to_64_gib_is_refused(tmp_path: Path):
    """One value of 32 MiB, to which 2,000 rows point."""
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([b"\0" * 2**25]))
    table = pa.table({"image": image, "label": [0] * 2000})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd", row_group_size=10**6, store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    refusal, restored = read_apart(tmp_path / "bomb.parquet")
    kilobytes, _, words = refusal.partition(" ")
    assert int(kilobytes) < 5 * 2**20
    assert words == (
        "bomb.parquet: from row 0 on it expands to more than 4 GiB, or its row group is larger than 12 GiB; allowed: "
        "smaller row groups"
    )
    assert restored == "True"


def test_large_images_are_read_a_few_at_a_time(tmp_path: Path):
    images = [bytes([index]) * 2**22 for index in range(100)]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": list(range(100))})
    pq.write_table(table, tmp_path / "large.parquet", compression="none", use_dictionary=False)
    assert read_apart(tmp_path / "large.parquet") == ["100", "True"]


HEADERS = {
    "cut": "{'descr': '|u1', ",
    "indented": "  a\n b",
    "text": "'''",
    "deep": "(" * 9000,
    "nested": "-" * 9000 + "1",
    "huge": f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30}, 4, 4)}}",
    "no key": "{[]: 1}",
    "no shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3.0, 4)}",
}


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", [*HEADERS, "no archive"])
def test_an_array_whose_header_is_none_is_one_line(tmp_path: Path, name: str):
    header = HEADERS.get(name, "").encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(96)
    (tmp_path / "x.npy").write_bytes(b"PK\x03\x04" if name == "no archive" else content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as packed:
        packed.writestr("mu.npy", content)
        packed.writestr("sigma.npy", content)
    with pytest.raises(InputError, match=r"data\.source = '.*x\.npy': not a readable \.npy file: ") as caught:
        load_array(DataConfig(source=str(tmp_path / "x.npy")))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"x\.npz: (not an|takes more) "):
        load_published(tmp_path / "x.npz")


WRONG_VALUES = ["2020-13-45", "!!bool foo", "!!int ''", "!!timestamp foo", "!!float ''", "!!float 1" + ":1" * 1000]


@pytest.mark.parametrize("text", WRONG_VALUES)
def test_a_value_that_its_tag_does_not_fit_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "run.yaml").write_text(f"seed: {text}\n")
    with pytest.raises(InputError, match=r"not valid YAML: .* is no \w+ ") as caught:
        load_config(tmp_path / "run.yaml", [])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"--set seed: .* is not a YAML value"):
        apply_sets({}, [f"seed={text}"])
    (tmp_path / "array.yaml").write_text(f"- a: {text}\n")
    with pytest.raises(QueueInputError, match="--array"):
        read_array(tmp_path / "array.yaml")


def test_a_value_that_is_nested_too_deep_is_one_line():
    with pytest.raises(InputError, match=r"--set seed: .* is not a YAML value"):
        apply_sets({}, ["seed=" + "[" * 10**4])


def test_a_bound_on_memory_ends_with_its_block():
    with pytest.raises(MemoryError), at_most(2**28):
        bytearray(2**30)
    assert len(bytearray(2**30)) == 2**30
