"""Where snapshots and logs are kept: a folder and a real S3 server behave alike."""

import itertools
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import retention, snapshot
from cluster.__main__ import main
from cluster.errors import FilesUnavailableError, InputError
from cluster.files import Bucket, Files, Folder, digest, ends_of, log_name, open_files
from cluster.spec import Ending
from cluster.store import Store
from tests.cluster.conftest import spec
from tests.cluster.test_dispatcher import FakeRay, made
from tests.servers.s3 import S3Server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    patch = pytest.MonkeyPatch()
    with S3Server("queue") as server:
        for name, value in server.settings.items():
            patch.setenv(name, value)
        yield server
        patch.undo()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "folder":
        return open_files(f"file://{tmp_path}/a%20folder")
    request.getfixturevalue("s3")
    return open_files(f"s3://queue/{tmp_path.name}/")


def test_what_is_written_is_read(files: Files):
    assert files.list("logs") == []
    assert not files.exists("logs/a.log")
    with pytest.raises(FileNotFoundError):
        list(files.read("logs/a.log"))
    files.write("logs/a.log", (b"x" * 2**20 for _ in range(3)))
    files.write("logs/b.log", [b"\xff", b"b"])
    files.write("snapshots/c.zip", [])
    assert b"".join(files.read("logs/a.log")) == b"x" * 3 * 2**20
    files.write("logs/a.log", [b"again"])
    assert b"".join(files.read("logs/a.log")) == b"again"
    assert [(each.name, each.size) for each in files.list("logs")] == [("logs/a.log", 5), ("logs/b.log", 2)]
    assert all(abs(each.modified - time.time()) < 60 for each in files.list("logs"))
    assert files.exists("snapshots/c.zip")
    files.remove("logs/a.log")
    files.remove("logs/a.log")
    assert [each.name for each in files.list("logs")] == ["logs/b.log"]


def test_a_local_file_has_the_same_content(files: Files):
    files.write("snapshots/a.zip", [b"code"])
    assert files.local("snapshots/a.zip").read_bytes() == b"code"
    assert files.local("snapshots/a.zip").name == "a.zip"
    assert not files.local("snapshots/b.zip").exists()


def test_what_breaks_off_leaves_nothing(files: Files):
    def parts() -> Iterator[bytes]:
        yield b"x" * 2**20
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write("logs/a.log", parts())
    assert files.list("logs") == []


def test_a_queue_whose_files_are_elsewhere(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    url = f"sqlite:///{tmp_path}/queue/queue.db"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.py").write_text("print('hello')")
    words = ["submit", "--working-dir", str(tmp_path / "code"), "--", "bash", "-c", "true"]
    assert main(["--store", url, "--files", files.uri, *words]) == 0
    assert sorted(path.name for path in (tmp_path / "queue").iterdir()) == ["queue.db"]
    store = Store.open(url)
    [job] = store.jobs()
    archive = store.files.local(snapshot.name_of(job.snapshot))
    assert digest(archive) == job.snapshot
    assert main(["--store", url, "gc"]) == 0
    assert files.exists(snapshot.name_of(job.snapshot))
    dispatcher = made(store, FakeRay({"bash": [0]}, runs=1))
    dispatcher.step()
    dispatcher.step()
    [attempt] = store.attempts(job.id)
    assert b"".join(store.files.read(log_name(attempt.submission_id))).startswith(b"output of ")
    capsys.readouterr()
    store.files.write(log_name(attempt.submission_id), ["grüße\n".encode(), b"\xff\n"])
    assert main(["--store", url, "logs", str(job.id)]) == 0
    assert capsys.readouterr().out == "grüße\n\ufffd\n"
    found = retention.collect(store, time.time() + 10)
    assert (found.logs, found.snapshots) == (1, 1)
    assert files.list("logs") == files.list("snapshots") == []
    assert main(["--store", url, "requeue", str(job.id)]) == 2
    assert f"{job.snapshot}.zip was removed when it had ended" in capsys.readouterr().err


@pytest.mark.integration
def test_a_server_that_is_away_keeps_a_job_waiting_and_costs_no_attempt(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store.open(f"sqlite:///{tmp_path}/queue.db", files=f"s3://queue/{tmp_path.name}")
    job = store.submit(spec(command=["works"]))
    store.files.write(snapshot.name_of(job.snapshot), [b"x"])
    monkeypatch.setattr("cluster.files.CONNECT_TIMEOUT_S", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = Store.open(f"sqlite:///{tmp_path}/queue.db")
    ray, reports = FakeRay({"works": [0]}, runs=1), list[str]()
    dispatcher = made(away, ray, reports.append)
    dispatcher.step()
    assert [text for text in reports if text.endswith("; trying again")] == reports[1:]
    assert store.job(job.id).reason.startswith(f"s3://queue/{tmp_path.name}: ")
    with pytest.raises(FilesUnavailableError):
        away.files.list("logs")
    monkeypatch.undo()
    for name, value in s3.settings.items():
        monkeypatch.setenv(name, value)
    back = made(Store.open(f"sqlite:///{tmp_path}/queue.db"), ray)
    back.step()
    back.step()
    assert (store.job(job.id).state, len(store.attempts(job.id))) == ("succeeded", 1)
    assert isinstance(store.files, Bucket)


@pytest.mark.parametrize(
    "bad",
    [
        "relative",
        "http://host/x",
        "s3://",
        "s3://bucket/x?endpoint=y",
        "file://host/x",
        "",
        "s3://bucket//x",
        "s3://[x",
        "s3://key:secret@bucket/x",
        "s3://B",
        "/a\0b",
    ],
)
def test_places_that_are_none(bad: str, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"allowed: an absolute path of a shared folder, or s3://bucket/prefix"
    ) as caught:
        Store.open(f"sqlite:///{tmp_path}/queue.db", files=bad)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(FilesUnavailableError, match="file"):
        Folder(tmp_path / "file").write("logs/a.log", [b"x"])


def test_an_ended_attempt_is_closed_though_its_output_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store.open(f"sqlite:///{tmp_path}/queue.db", files=str(tmp_path / "files"))
    job = store.submit(spec(command=["works"]))
    (tmp_path / "files").write_text("a file where the folder should be")
    reports: list[str] = []
    dispatcher = made(store, FakeRay({"works": [0]}, runs=1), reports.append)
    dispatcher.step()
    dispatcher.step()
    assert store.job(job.id).state == "starting"
    monkeypatch.setattr("cluster.dispatcher.SAVE_S", 0.0)
    dispatcher.step()
    assert store.job(job.id).state == "succeeded"
    assert any("could not be saved" in text for text in reports)
    assert store.end_attempt(store.attempts(job.id)[0], Ending(status="lost")).state == "succeeded"


@pytest.mark.parametrize(
    ("folder", "file"),
    [(0o700, 0o600), (0o755, 0o600), (0o770, 0o660), (0o2775, 0o660), (0o777, 0o666), (0o1777, 0o600)],
)
def test_files_are_for_those_who_may_write_in_their_folder(tmp_path: Path, folder: int, file: int):
    """Whatever the process's own mask says."""
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue").chmod(folder)
    for mask in (0o022, 0o077, 0):
        before = os.umask(mask)
        try:
            files = open_files(str(tmp_path / "queue"))
            files.write(f"logs{mask}/a.log", [b"x"])
        finally:
            os.umask(before)
        written = tmp_path / "queue" / f"logs{mask}" / "a.log"
        assert stat.S_IMODE(written.stat().st_mode) == file
        inner = stat.S_IMODE(written.parent.stat().st_mode)
        assert inner & 0o077 == (file & 0o066) | (file & 0o066) >> 1
        assert inner & 0o2000 == folder & 0o2000


def test_a_new_queue_is_its_users_alone_and_what_it_is_in_is_left_to_others(tmp_path: Path):
    """The storage that it is in has packages, which are for everybody."""
    before = os.umask(0o022)
    try:
        Store.open(f"sqlite:///{tmp_path}/storage/queue/queue.db").files.write("logs/x.log", [b"x"])
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "storage": 0o755, "storage/queue": 0o700, "storage/queue/queue.db": 0o600, "storage/queue/logs": 0o700,
        "storage/queue/logs/x.log": 0o600,
    }  # fmt: skip


@pytest.mark.integration
def test_an_upload_that_breaks_off_leaves_what_was_there(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same code may have been submitted before, and its job waits."""
    files = open_files(f"s3://queue/{tmp_path.name}")
    files.write("snapshots/a.zip", [b"whole"])

    def interrupted(source, target, size: int) -> None:
        target.write(source.read(2))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write("snapshots/a.zip", [b"whole"])
    assert [(each.name, each.size) for each in files.list("snapshots")] == [("snapshots/a.zip", 5)]
    assert b"".join(files.read("snapshots/a.zip")) == b"whole"


@pytest.mark.integration
def test_secrets_need_a_folder(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "x").touch()
    words = ["--working-dir", str(tmp_path / "code"), "--secret", f"TOKEN={tmp_path}/code/x", "--", "bash"]
    assert main(["--store", f"sqlite:///{tmp_path}/queue.db", "--files", "s3://queue/x", "submit", *words]) == 2
    assert "none is its user's alone" in capsys.readouterr().err
    assert Store.open(f"sqlite:///{tmp_path}/queue.db").jobs() == []


def test_of_an_output_without_end_both_ends_are_kept():
    counted = [b"%07d\n" % number for number in range(1000)]
    assert b"".join(ends_of(counted, 16_000, 60.0)) == b"".join(counted)
    first, last = b"".join(ends_of(counted, 808, 60.0)).split(b"\n(0.0 MiB left out)\n")
    assert first == b"".join(counted)[:404]
    assert b"".join(counted).endswith(last)
    assert 404 <= len(last) < 404 + 8
    endless = b"".join(ends_of(itertools.repeat(bytes(2**16)), 2**20, 0.2))
    assert len(endless) < 2**20 + 2**17
    assert endless.endswith(b"(the rest was not read in 0.2 s)\n")


def test_what_was_read_before_an_error_is_kept():
    def broken() -> Iterator[bytes]:
        yield from [b"%07d\n" % number for number in range(1000)]
        raise OSError("gone")

    kept = list[bytes]()
    with pytest.raises(OSError, match="gone"):  # noqa: PT012 - what came before is looked at
        for part in ends_of(broken(), 808, 60.0):
            kept.append(part)
    assert b"".join(kept).endswith(b"0000999\n")


def test_a_snapshot_that_somebody_has_made_endless_is_not_fetched(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cluster.files.MAX_COPY_BYTES", 2**16)
    files = open_files(f"s3://queue/{tmp_path.name}")
    files.write("snapshots/a.zip", [bytes(2**16)] * 100)
    assert files.local("snapshots/a.zip").stat().st_size == 2**16
