"""The frame around the queue's command: one line, an exit code, and a file with the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.command import run_command
from cluster.errors import InputError, RayUnavailableError, StoreUnavailableError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb\x1b[31m\udcff"), 2, "error: a b\\x1b[31m\\udcff\n"),
        (RayUnavailableError("no answer"), 2, "error: no answer\n"),
        (StoreUnavailableError("locked"), 1, "error: locked\n"),
        (KeyboardInterrupt(), 1, ""),
    ],
)
def test_what_is_foreseen_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise error

    assert run_command(command) == code
    assert capsys.readouterr().err == line


def test_what_nobody_foresaw_is_one_line_and_a_file_with_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_command(lambda: {}["x"]) == 1
    [file] = tmp_path.glob("dualview-*.log")
    assert capsys.readouterr().err == f"failed: KeyError: 'x'  (all of it: {file})\n"
    assert "Traceback" in file.read_text()


@pytest.mark.parametrize("content", [b"SQLite format 3\0 and no more", b"text", b"\0" * 5000])
def test_a_broken_queue_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "queue.db").write_bytes(content)
    for action in (["list"], ["show", "1"], ["cancel", "1"], ["logs", "1"]):
        assert main(["--queue", f"sqlite:///{tmp_path}/queue.db", *action]) in (1, 2)
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "import cluster.command as c; raise SystemExit(c.run_command(lambda: [print('x' * 99) for _ in range(9999)]))"
    )
    process = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (process.stdout, process.stderr) == ("x" * 99 + "\n", "")
