"""The command line: one clear line for bad input, exit 2, and nothing half done."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.__main__ import main, queue_url
from cluster.dispatcher import dispatcher_lock
from cluster.request import INHERITED_VARIABLES
from cluster.store import Store
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def queue(url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*INHERITED_VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DUALVIEW_QUEUE", url)
    return Path(url.removeprefix("sqlite:///")).parent


def run(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    assert main(arguments) == expect
    captured = capsys.readouterr()
    return captured.err if expect else captured.out


def submit(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "job.py").write_text("print('hello')\n")
    return run(capsys, "submit", "--working-dir", str(folder / "code"), *arguments)


def test_submit_list_show_cancel(capsys: pytest.CaptureFixture[str], tmp_path: Path, queue: Path, url: str):
    out = submit(capsys, tmp_path, "--priority", "5", "--env", "A=b", "--", "python", "job.py", "--json")
    assert out.startswith("job 1 queued: job.py (priority 5)")
    submit(capsys, tmp_path, "--name", "second", "--resources", "2*CPU=1", "--", "bash", "-c", "exit 0")
    table = run(capsys, "list")
    assert table.endswith("no dispatcher is running on this machine: python -m cluster dispatch\n")
    with dispatcher_lock(Store.open(url)):
        assert "no dispatcher is running" not in run(capsys, "list")
    assert re.search(r"1 +job\.py +queued +5 .*no dispatcher has looked at it yet", table)
    rows = json.loads(run(capsys, "list", "--json"))
    assert [row["gangs"] for row in rows] == [[[{"CPU": 1.0}]], [[{"CPU": 1.0}, {"CPU": 1.0}]]]
    assert rows[0]["command"] == ["python", "job.py", "--json"]
    assert len(list((queue / "snapshots").iterdir())) == 1
    shown = run(capsys, "show", "1")
    assert "python job.py --json" in shown
    assert re.search(r"variables +A\b", shown)
    assert "A=b" not in shown, "a value may be a secret"
    assert "is cancelled" in run(capsys, "cancel", "2")
    history = json.loads(run(capsys, "show", "2", "--json"))["events"]
    assert history[-1]["text"] == "cancelled: cancelled while it waited"
    main(["logs", "2"])
    assert "job 2 cancelled" in capsys.readouterr().err


def test_a_path_that_is_not_in_the_snapshot_is_found_by_the_dry_run_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
):
    """The dry run sees what the job will see: an ignored configuration, and data that git ignores."""
    code = tmp_path / "code"
    shutil.copytree(
        ROOT, code, ignore=lambda folder, names: {n for n in names if n not in KEPT and folder == str(ROOT)}
    )
    (code / ".gitignore").write_text("mine.yaml\nimages/\n__pycache__/\n")
    (code / "mine.yaml").write_text("data: {source: images}\n")
    (code / "images").mkdir()
    Image.new("L", (8, 8)).save(code / "images" / "1.png")
    subprocess.run(["git", "init", "-q"], cwd=code, check=True)
    command = ["submit", "--working-dir", str(code), "--", "python", "-m", "trainer"]
    for words, path in ((["--config", "mine.yaml"], "mine.yaml"), (["--config", "own.yaml"], "images")):
        (code / "own.yaml").write_text("data: {source: images}\n")
        line = run(capsys, *command, *words, expect=2)
        assert line.startswith("error: the command rejects its input: ")
        assert f"; {path} is in {code}, but git ignores it, so it is not in the job's snapshot" in line
        assert line.count("\n") == 1
    assert not Path(url.removeprefix("sqlite:///")).exists()


KEPT = {"trainer", "diffusion", "pyproject.toml"}


def test_only_the_last_that_ended_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for number in range(12):
        submit(capsys, tmp_path, "--name", f"job{number}", "--", "true")
        run(capsys, "cancel", str(number + 1))
    table = run(capsys, "list")
    assert "job1 " not in table
    assert "job2 " in table
    assert "and 2 more that ended earlier (--all shows them)" in table
    assert "job0 " in run(capsys, "list", "--all")


def test_an_empty_queue_says_what_to_do(capsys: pytest.CaptureFixture[str], url: str):
    Store.open(url)
    assert "python -m cluster submit" in run(capsys, "list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "no command; allowed: python -m cluster submit -- COMMAND"),
        (["submit", "--"], "no command"),
        (["submit", "--", " "], "no command"),
        (["submit", "--name", "a b", "--", "true"], "name = 'a b'"),
        (["submit", "--priority", "99999999999", "--", "true"], "priority = 99999999999"),
        (["submit", "--resources", "many", "--", "true"], "--resources 'many'"),
        (["submit", "--env", "x", "--", "true"], "--env 'x'"),
        (["submit", "--working-dir", "/nowhere", "--", "true"], "--working-dir /nowhere: no such folder"),
        (["submit", "--working-dir", "/nowhere", "--", "python", "-m", "trainer"], "--working-dir /nowhere: no such"),
        (
            ["submit", "--", "python", "-m", "trainer", "--config", "missing.yaml"],
            "the command rejects its input: --c",
        ),
        (["list"], "--queue sqlite:///"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], queue: Path, arguments: list[str], message: str):
    error = run(capsys, *arguments, expect=2)
    assert error.startswith(f"error: {message}"), error
    assert error.count("\n") == 1
    assert not queue.exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9", "no Ray job server answers at http://127.0.0.1:9"),
        ("127.0.0.1:9", "no Ray job server answers at 127.0.0.1:9"),
        ("nonsense://x", "no Ray job server at nonsense://x"),
    ],
)
def test_a_cluster_that_does_not_answer(capsys: pytest.CaptureFixture[str], url: str, address: str, message: str):
    error = run(capsys, "dispatch", "--address", address, expect=2)
    assert error.startswith(f"error: {message}"), error
    assert error.count("\n") == 1
    assert Store.open(url).jobs() == []


@pytest.mark.parametrize("action", [["show", "9"], ["logs", "9"], ["cancel", "9"]])
def test_unknown_jobs(capsys: pytest.CaptureFixture[str], url: str, action: list[str]):
    Store.open(url)
    assert run(capsys, *action, expect=2) == "error: job 9: no such job; allowed: submit one first\n"


def test_the_queue_is_found_where_the_runs_are(monkeypatch: pytest.MonkeyPatch):
    assert queue_url("sqlite:////x/y.db") == "sqlite:////x/y.db"
    monkeypatch.delenv("DUALVIEW_QUEUE")
    monkeypatch.setenv("DUALVIEW_STORAGE", "/data")
    assert queue_url(None) == "sqlite:////data/queue/queue.db"
    monkeypatch.delenv("DUALVIEW_STORAGE")
    assert queue_url(None) == f"sqlite:///{Path.home()}/dualview/queue/queue.db"


def test_a_queue_in_a_storage_of_any_name_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    storage = tmp_path / "my runs #1?a=b%41+c"
    monkeypatch.delenv("DUALVIEW_QUEUE")
    monkeypatch.setenv("DUALVIEW_STORAGE", str(storage))
    url = queue_url(None)
    assert Store.open(url).file == storage / "queue" / "queue.db"
    assert Store.open(url, create=False).jobs() == []
    assert [path.name for path in tmp_path.iterdir()] == [storage.name]


def test_help_is_quick_and_imports_no_database():
    code = (
        "import sys\nfrom cluster.__main__ import parser\nparser().format_help()\n"
        "print([name for name in ('sqlalchemy', 'ray', 'pydantic', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
