"""The frame around every command: one line, an exit code, and a file with the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.command import printable, run_command
from tests.conftest import ROOT


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a = 1: allowed: 2"), 2, "error: a = 1: allowed: 2\n"),
        (KeyboardInterrupt(), 1, "interrupted\n"),
        (ValueError("two\nlines"), 2, "error: two lines\n"),
        (ValueError("red \x1b[31m and a bell \a"), 2, "error: red \\x1b[31m and a bell \\x07\n"),
        (ValueError("not UTF-8: \udcff"), 2, "error: not UTF-8: \\udcff\n"),
    ],
)
def test_what_is_foreseen_is_one_line(error, code, line, capsys):
    assert run_command(raising(error), ValueError) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [KeyError("x"), OSError(28, "No space left on device"), ZeroDivisionError()])
def test_what_nobody_foresaw_is_one_line_and_a_file_with_the_rest(error, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_command(raising(error), ValueError) == 1
    line = capsys.readouterr().err
    [file] = tmp_path.glob("dualview-*.log")
    assert line.startswith(f"failed: {type(error).__name__}")
    assert line.endswith(f"  (all of it: {file})\n")
    assert line.count("\n") == 1
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_without_room_for_the_file_the_line_is_all_there_is(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-such-folder")
    assert run_command(raising(KeyError("x")), ValueError) == 1
    assert capsys.readouterr().err == "failed: KeyError: 'x'\n"


@pytest.mark.parametrize("text", ["plain", "ümläut 漢字", "a  b"])
def test_printable_text_is_left_alone(text):
    assert printable(text) == text


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    """`--list-faults | head -1`: Python's own flush at its end says nothing either."""
    command = f"{sys.executable} -m diffusion.verify --list-faults | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "1")


def test_names_that_are_not_utf_8_can_be_printed():
    code = "from diffusion.command import run_command\nrun_command(lambda: print('\\udcff'), ValueError)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\\udcff\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the last flush", "while it prints"])
def test_a_reader_that_is_gone_already_is_no_error(lines):
    command = f"lambda: [print('x') for _ in range({lines})][0]"
    code = f"from diffusion.command import run_command\nrun_command({command}, ValueError)"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$CODE" | true'], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "CODE": code},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_another_pipe_that_breaks_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_command(raising(BrokenPipeError(32, "Broken pipe")), ValueError) == 1
    assert capsys.readouterr().err.startswith("failed: BrokenPipeError: [Errno 32] Broken pipe  (all of it: ")
