"""The command line: one clear line for bad input, exit 2, and nothing half done."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.__main__ import main, queue_url
from cluster.accounts import Accounts
from cluster.admission import Wait
from cluster.database import lock
from cluster.database.tables import Job
from cluster.placement import Node
from cluster.reasons import Reason
from cluster.request import INHERITED_VARIABLES
from cluster.spec import Ending
from cluster.store import Selection, Store
from tests.cluster.conftest import log_of
from tests.conftest import ROOT
from tests.disks import fill, small_disk


@pytest.fixture(autouse=True)
def queue(url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*INHERITED_VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DUALVIEW_QUEUE", url)
    monkeypatch.setenv("LOGNAME", "me")
    return Path(url.removeprefix("sqlite:///")).parent


def run(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    assert main(arguments) == expect
    captured = capsys.readouterr()
    return captured.err if expect else captured.out


def submit(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "job.py").write_text("print('hello')\n")
    return run(capsys, "submit", "--working-dir", str(folder / "code"), *arguments)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with small_disk(tmp_path / "disk", "1m") as disk:
        monkeypatch.setenv("DUALVIEW_QUEUE", f"sqlite:///{disk}/queue/queue.db")
        submit(capsys, tmp_path, "--", "python", "job.py")
        before = sorted(disk.rglob("*"))
        ballast = fill(disk)
        (tmp_path / "code" / "more.py").write_text("print('more')\n")
        errors = run(capsys, "submit", "--working-dir", str(tmp_path / "code"), "--", "python", "more.py", expect=1)
        assert errors.count("\n") == 1
        assert re.search("full|No space left", errors)
        assert len(json.loads(run(capsys, "list", "--json"))) == 1
        ballast.unlink()
        assert sorted(disk.rglob("*")) == before
        out = submit(capsys, tmp_path, "--", "python", "more.py")
        assert out.startswith("job 2 queued")


def test_submit_list_show_cancel(capsys: pytest.CaptureFixture[str], tmp_path: Path, queue: Path, url: str):
    out = submit(capsys, tmp_path, "--priority", "5", "--env", "A=b", "--", "python", "job.py", "--json")
    assert out.startswith("job 1 queued: job.py (priority 5); python -m cluster logs -f 1")
    submit(capsys, tmp_path, "--name", "second", "--resources", "2*CPU=1", "--", "bash", "-c", "exit 0")
    table = run(capsys, "list")
    assert table.endswith("no dispatcher is running on this machine: python -m cluster dispatch\n")
    with lock.hold(Store.open(url).anchor):
        assert "no dispatcher is running" not in run(capsys, "list")
    assert re.search(r"1 +job\.py +me +default +queued +5 .*no dispatcher has looked at it yet", table)
    rows = json.loads(run(capsys, "list", "--json"))
    cpu = {"resources": {"CPU": 1.0}, "labels": {}}
    assert [row["gangs"] for row in rows] == [[[]], [[cpu, cpu]]]
    assert [row["driver"]["resources"] for row in rows] == [{"CPU": 1.0}, {"memory": 2.0**29}]
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
    assert "and 2 more (--all shows those that ended earlier, " in table
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
        (["submit", "--driver", "many", "--", "true"], "--driver 'many'"),
        (["submit", "--label", "x", "--", "true"], "--label 'x'"),
        (["submit", "--max-runtime", "soon", "--", "true"], "--max-runtime 'soon'"),
        (["submit", "--after", "x", "--", "true"], "--after 'x'"),
        (["submit", "--retries", "-1", "--", "true"], "retries = -1"),
        (["submit", "--array", "/nowhere.yaml", "--", "true"], "--array /nowhere.yaml: No such file"),
        (["submit", "--secret", "X", "--", "true"], "--secret 'X': allowed: NAME=FILE"),
        (["submit", "--secret", "X=/nowhere", "--", "true"], "--secret X: /nowhere: No such file"),
        (["submit", "--queue", "a b", "--", "true"], "queue 'a b': no such queue; allowed: default"),
        (["submit", "--after", "7", "--", "true"], "job 7: no such job; allowed: submit one first"),
        (
            ["submit", "--", "python job.py"],
            "the command is the one word 'python job.py'; allowed: python job.py, or bash",
        ),
        (["submit", "--", "./missing.sh"], "./missing.sh: is not in the job's snapshot of "),
        (["submit", "--", "../x.sh"], "../x.sh: is not in the job's snapshot of "),
        (["submit", "--", "docs/queue.md"], "docs/queue.md: cannot be executed; allowed: what `chmod +x` was done to"),
        (["submit", "--", "README.md"], "README.md: is no command but a file of the folder; allowed: ./README.md"),
        (["submit", "--name", "\x1b[31m", "--", "true"], "name = "),
        (["list"], "--store sqlite:///"),
        (["queues"], "--store sqlite:///"),
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


@pytest.mark.parametrize(
    "action",
    [["show", "9"], ["why", "9"], ["logs", "9"], ["cancel", "9"], ["hold", "9"], ["release", "9"], ["requeue", "9"],
     ["set", "9", "--priority", "1"]],
)  # fmt: skip
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
    assert Store.open(url).anchor == storage / "queue" / "queue.db"
    assert Store.open(url, create=False).jobs() == []
    assert [path.name for path in tmp_path.iterdir()] == [storage.name]


def test_help_is_quick_and_imports_no_database():
    code = (
        "import sys\nfrom cluster.__main__ import parser\nparser().format_help()\n"
        "print([name for name in ('sqlalchemy', 'ray', 'pydantic', 'rich', 'numpy', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ for a team


def test_who_asks_for_what_is_stored(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str):
    run(capsys, "queues", "set", "vision", "--weight", "2", "--guaranteed", "0.25", "--max-priority", "5")
    submit(capsys, tmp_path, "--", "true")
    out = submit(
        capsys, tmp_path, "--queue", "vision", "--priority", "5", "--max-runtime", "1-00:00:00",
        "--at-the-limit", "fail", "--retries", "5", "--after", "1:any", "--driver", "CPU=2@zone=a", "--hold", "--",
        "python", "job.py",
    )  # fmt: skip
    assert out.startswith("job 2 queued: job.py (priority 5, queue vision)")
    job = Store.open(url).job(2)
    assert (job.queue, job.max_runtime_s, job.at_the_limit, job.retries) == ("vision", 86400.0, "fail", 5)
    assert (job.after, job.hold, job.user, job.says_when) == ({"1": "any"}, "held", "me", False)
    shown = run(capsys, "show", "2")
    assert re.search(r"whose +me, queue vision, priority 5", shown)
    assert re.search(r"asks for +2 CPU where zone is a", shown)
    assert re.search(r"limit +24:00:00, then it fails", shown)
    assert re.search(r"comes after +job 1 \(any\)", shown)
    error = submit_error(capsys, tmp_path, "--queue", "vision", "--priority", "6", "--", "true")
    assert error == "error: --priority 6: queue vision allows at most 5\n"
    error = submit_error(capsys, tmp_path, "--queue", "text", "--", "true")
    assert error == "error: queue 'text': no such queue; allowed: default, vision (`queues set NAME` makes one)\n"
    error = submit_error(capsys, tmp_path, "--after", "3", "--", "true")
    assert error == "error: job 3: no such job; allowed: 1 to 2\n"
    assert Store.open(url).count(Selection()) == 2


def submit_error(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    return run(capsys, "submit", "--working-dir", str(folder / "code"), *arguments, expect=2)


def test_the_same_is_queued_once(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    submit(capsys, tmp_path, "--", "true")
    again = submit(capsys, tmp_path, "--", "true")
    assert again == "job 1 is queued already: true, with the same key (--key '' queues another)\n"
    assert submit(capsys, tmp_path, "--key", "", "--", "true").startswith("job 2 queued")
    assert submit(capsys, tmp_path, "--name", "other", "--", "true").startswith("job 3 queued")


def test_an_array(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str):
    rows = tmp_path / "rows.yaml"
    rows.write_text("- {seed: 1}\n- {seed: 2}\n- {seed: 3}\n")
    out = submit(capsys, tmp_path, "--array", str(rows), "--", "python", "job.py", "--seed={seed}")
    assert out == "jobs 1 to 3 queued: 3 of an array; python -m cluster list --array 1\n"
    jobs = Store.open(url).jobs()
    assert [job.command[-1] for job in jobs] == ["--seed=1", "--seed=2", "--seed=3"]
    assert [job.name for job in jobs] == ["job.py-0", "job.py-1", "job.py-2"]
    assert [job.environment["DUALVIEW_ARRAY_INDEX"] for job in jobs] == ["0", "1", "2"]
    after = json.loads(submit(capsys, tmp_path, "--json", "--name", "sum", "--after", "1:any", "--", "true"))
    assert after["jobs"] == [{"id": 4, "name": "sum", "state": "queued", "new": True}]
    assert Store.open(url).job(4).after == {"1": "any", "2": "any", "3": "any"}
    run(capsys, "cancel", "--array", "1")
    assert {job.state for job in Store.open(url).jobs()} == {"cancelled", "queued"}
    (tmp_path / "code" / "run-1.sh").touch(0o755)
    rows.write_text("- {seed: 1}\n- {seed: 2}\n")
    error = submit_error(capsys, tmp_path, "--array", str(rows), "--", "./run-{seed}.sh")
    assert error.startswith(f"error: --array {rows}: row 2: ./run-2.sh: is not in the job's snapshot of ")
    rows.write_text("- {seed: 1}\n")
    submit(capsys, tmp_path, "--array", str(rows), "--", "python", "job.py", "{seed}")
    assert [row["id"] for row in json.loads(run(capsys, "list", "--json", "--array", "5"))] == [5]
    bad = ["--array", str(rows), "--", "python", "-m", "trainer", "--config", "configs/digits.yaml", "--set"]
    error = run(capsys, "submit", "--working-dir", str(ROOT), *bad, "training.steps=-{seed}", expect=2)
    assert error.startswith(f"error: --array {rows}: row 1: the command rejects its input: training.steps = -1")
    assert len(Store.open(url).jobs()) == 5
    submit(capsys, tmp_path, "--name", "last", "--after", "1", "--after", "3:any", "--", "true")
    assert Store.open(url).jobs()[-1].after == {"1": "ok", "2": "ok", "3": "any"}


def test_a_secret_that_the_jobs_could_not_read_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, queue: Path
):
    submit(capsys, tmp_path, "--", "true")
    (tmp_path / "token").write_text("hunter2")
    (queue / "tokens").mkdir()
    os.chown(queue / "tokens", 12345, 12345)
    error = submit_error(capsys, tmp_path, "--secret", f"A={tmp_path}/token", "--name", "other", "--", "true")
    assert error.startswith("error: --secret: user 12345 dispatches the jobs of this queue, who could not read")
    assert not (queue / "secrets").exists()


def test_secrets_are_where_only_the_job_can_read_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, queue: Path, url: str
):
    secret = tmp_path / "token"
    secret.write_text("hunter2")
    submit(capsys, tmp_path, "--secret", f"HF_TOKEN={secret}", "--key", "one", "--", "true")
    submit(capsys, tmp_path, "--secret", f"HF_TOKEN={secret}", "--key", "one", "--", "true")  # which is that one
    [kept] = (queue / "secrets").glob("*/*")
    path = Path(Store.open(url).job(1).environment["HF_TOKEN_FILE"])
    assert path == kept
    assert path.read_text() == "hunter2"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    everything = run(capsys, "list", "--json") + run(capsys, "show", "1", "--json") + run(capsys, "show", "1")
    assert "hunter2" not in everything
    assert b"hunter2" not in Path(url.removeprefix("sqlite:///")).read_bytes()
    run(
        capsys,
        "submit",
        "--working-dir",
        str(tmp_path),
        "--secret",
        f"A={secret}",
        "--queue",
        "no",
        "--",
        "x",
        expect=2,
    )
    run(capsys, "cancel", "1")
    assert list((queue / "secrets").iterdir()) == []
    error = run(capsys, "requeue", "1", expect=2)
    assert error.startswith(f"error: job 1: {path} was removed when it had ended; allowed: to submit it again")


def test_other_peoples_jobs_ask_for_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        submit(capsys, tmp_path, "--name", name, "--", "true")
    monkeypatch.setenv("LOGNAME", "you")
    for command in (["cancel"], ["hold"], ["release"], ["requeue"], ["set", "--priority", "1"]):
        error = run(capsys, *command, "1", expect=2)
        assert error == "error: job 1 is me's, and you are you; allowed: your own, or --force\n"
    assert run(capsys, "hold", "--force", "--name", "*") == "job 1 is held\njob 2 is held\n"
    Accounts(Store.open(url)).set_queue("vision")
    assert run(capsys, "set", "--force", "1", "--queue", "vision") == "job 1 is changed\n"
    done = json.loads(run(capsys, "set", "--force", "--json", "--of-queue", "vision", "--queue", "default"))
    assert done == [{"id": 1, "done": "is changed"}]
    assert run(capsys, "set", "--force", "1", "--priority", "3", "--max-runtime", "1h") == "job 1 is changed\n"
    assert run(capsys, "set", "--force", "1", "--max-runtime", "none") == "job 1 is changed\n"
    job = Store.open(url).job(1)
    assert (job.priority, job.max_runtime_s, job.hold) == (3, None, "held")
    assert run(capsys, "release", "--force", "1", "2") == "job 1 is released\njob 2 is released\n"
    assert "job 2 is cancelled" in run(capsys, "cancel", "--force", "--user", "me", "2")
    assert run(capsys, "cancel", "--force", "--user", "ME", "2", expect=2).startswith("error: no such jobs")
    assert run(capsys, "requeue", "--force", "--user", "me") == "job 2 is queued again\n"  # and not 1, which waits
    assert run(capsys, "requeue", "--force", "1", expect=2).startswith("error: job 1: waits already")
    error = run(capsys, "cancel", expect=2)
    assert error == "error: no jobs; allowed: their ids, or --name, --user, --queue, --state or --array\n"
    assert run(capsys, "cancel", "--name", "nobody*", expect=2).startswith("error: no such jobs")
    assert run(capsys, "set", "1", expect=2).startswith("error: nothing to change; allowed: --priority")
    assert run(capsys, "set", "1", "--priority", "9999999", expect=2).startswith("error: --priority 9999999: allowed")


def test_running_jobs_of_others_do_not_leave_without_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    submit(capsys, tmp_path, "--", "true")
    store = Store.open(url)
    assert store.begin_attempt(1)
    monkeypatch.setenv("LOGNAME", "you")
    error = run(capsys, "drain", "--leave", "--no-wait", expect=2)
    assert error.startswith("error: job 1 is me's, and you are you")
    assert not store.glance(0.0).draining
    run(capsys, "drain", "--leave", "--no-wait", "--force")
    assert store.attempts()[0].asked == "leave"


def test_of_jobs_that_are_named_those_are_changed_that_can_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
):
    for name in ("a", "b", "c"):
        submit(capsys, tmp_path, "--name", name, "--", "true")
    run(capsys, "cancel", "2")
    assert main(["cancel", "1", "2", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "job 1 is cancelled\njob 3 is cancelled\n"
    assert captured.err == "error: job 2: has ended (cancelled); allowed: a job that waits or runs\n"
    assert {job.state for job in Store.open(url).jobs()} == {"cancelled"}


def test_what_no_node_could_hold_is_refused_with_what_there_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
):
    submit(capsys, tmp_path, "--name", "early", "--driver", "CPU=64", "--", "true")  # nobody has seen the nodes yet
    Store.open(url).see_nodes(
        [Node("a", {"CPU": 8.0, "memory": 1e12}, labels={"zone": "a"}), Node("b", {"CPU": 8.0, "memory": 1e12})]
    )
    error = submit_error(capsys, tmp_path, "--driver", "CPU=64", "--", "true")
    assert error == (
        "error: asks for 1 x (64 CPU); the nodes have 2 with 8 CPU; "
        "allowed: what there is, or --anyway for nodes that are still to come\n"
    )
    error = submit_error(capsys, tmp_path, "--label", "zone=b", "--", "true")
    assert error.startswith(
        "error: asks for 1 x (1 CPU where zone is b); the nodes have 2 with 8 CPU; zone is a there; "
    )
    assert submit(capsys, tmp_path, "--anyway", "--driver", "CPU=64", "--", "true").startswith("job 2 queued")
    assert submit(capsys, tmp_path, "--resources", "2*CPU=4", "--", "true").startswith("job 3 queued")


def test_what_its_queue_may_never_hold_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str):
    run(capsys, "queues", "set", "vision", "--maximum", "0.5")
    Store.open(url).see_nodes([Node("a", {"CPU": 8.0, "memory": 1e12})])
    submit(capsys, tmp_path, "--queue", "vision", "--resources", "4*CPU=1", "--", "true")
    error = submit_error(capsys, tmp_path, "--queue", "vision", "--resources", "5*CPU=1", "--", "true")
    assert error == (
        "error: asks for 62% of the cluster; the maximum of queue vision is 50%; allowed: what there is, or --anyway "
        "for nodes that are still to come\n"
    )


def test_why(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str):
    submit(capsys, tmp_path, "--", "true")
    text = run(capsys, "why", "1")
    assert text.startswith(
        "job 1  true  queued  (new)\n  no dispatcher has looked at it yet\n  expected start: not known"
    )
    assert text.endswith("no dispatcher is running on this machine: python -m cluster dispatch\n")
    Store.open(url).explain({1: Wait(Reason.RESOURCES, "needs 8 GPU on one node; the largest is [4]", 1e9)})
    text = run(capsys, "why", "1")
    assert "  needs 8 GPU on one node; the largest is [4]\n  what it needs is in use\n" in text
    assert re.search(r"expected start: 2001-09-09 \d\d:\d\d:40, if everything takes as long as declared", text)
    assert json.loads(run(capsys, "why", "1", "--json")) == {
        "id": 1, "state": "queued", "code": "resources", "start_at": 1e9,
        "reason": "needs 8 GPU on one node; the largest is [4]",
    }  # fmt: skip
    run(capsys, "cancel", "1")
    assert run(capsys, "why", "1") == "job 1  true  cancelled\n  cancelled while it waited\n"


def test_pages_and_filters(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for number in range(7):
        submit(capsys, tmp_path, "--name", f"job{number}", "--", "true")
    assert "job0" in run(capsys, "list")
    newest = run(capsys, "list", "--all", "--limit", "3")
    assert ["job4" in newest, "job3" in newest] == [True, False]
    assert "and 4 older ones (--page 2, --limit)" in newest
    older = run(capsys, "list", "--all", "--limit", "3", "--page", "2")
    assert ["job3" in older, "job4" in older] == [True, False]
    assert len(json.loads(run(capsys, "list", "--json"))) == 7
    assert len(json.loads(run(capsys, "list", "--json", "--limit", "2"))) == 2
    assert "job1" not in run(capsys, "list", "--page", "2")
    for empty in ("--name", "--user", "--queue"):
        with pytest.raises(SystemExit):
            main(["cancel", empty, ""])
        assert "allowed: a name, in which * stands for anything" in capsys.readouterr().err
    assert "job5" not in run(capsys, "list", "--name", "job6")
    assert run(capsys, "list", "--state", "failed") == "no such jobs\n"


def test_queues_usage_and_drain(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str):
    submit(capsys, tmp_path, "--", "true")
    out = run(
        capsys, "queues", "set", "vision", "--maximum", "0.5", "--max-running", "4", "--max-running-per-user", "none"
    )
    assert out == "queue vision: weight 1, guaranteed 0, at most 0.5\n"
    table = run(capsys, "queues")
    assert re.search(r"default +1 +0% +100% +any +any +any +0\.0% +1 +0", table)
    assert re.search(r"vision +1 +0% +50% +4 +any +any +0\.0% +0 +0", table)
    rows = json.loads(run(capsys, "queues", "--json"))
    assert [(row["name"], row["jobs"]) for row in rows] == [("default", {"queued": 1}), ("vision", {})]
    for bad in (["--weight", "0"], ["--guaranteed", "2"], ["--max-running", "many"]):
        assert run(capsys, "queues", "set", "vision", *bad, expect=2).startswith(f"error: {bad[0]} ")
    assert run(capsys, "queues", "set", "a b", expect=2).startswith("error: queue 'a b': allowed: letters")
    assert run(capsys, "queues", "remove", "vision") == "queue vision is removed\n"
    assert run(capsys, "usage", "--by", "queue").startswith("queue")
    assert json.loads(run(capsys, "usage", "--json")) == []
    assert run(capsys, "drain") == "no further job starts; `python -m cluster drain --off` lets them\n"
    assert Store.open(url).glance(0.0).draining
    store = Store.open(url)
    assert store.begin_attempt(1) is None
    store.drain(False)
    assert store.begin_attempt(1)
    assert run(capsys, "drain", "--leave", "--no-wait")
    assert store.attempts()[0].asked_reason == "the queue drains"
    assert run(capsys, "drain", "--off") == "jobs start again\n"
    assert not Store.open(url).glance(0.0).draining


def test_old_files_are_removed(capsys: pytest.CaptureFixture[str], tmp_path: Path, queue: Path, url: str):
    secret = tmp_path / "token"
    secret.write_text("hunter2")
    submit(capsys, tmp_path, "--secret", f"A={secret}", "--", "true")
    (tmp_path / "code" / "more.py").write_text("")
    submit(capsys, tmp_path, "--secret", f"A={secret}", "--name", "waits", "--", "true")
    store = Store.open(url)
    attempt = store.begin_attempt(1)
    assert attempt is not None
    log_of(store, attempt).parent.mkdir()
    log_of(store, attempt).write_text("x" * 2**20)
    store.end_attempt(attempt, Ending(status="succeeded", exit_code=0))
    with store.session() as session:
        session.get_one(Job, 1).ended_at = 1.0
    (queue / "logs" / "x.log.0a.part").touch()  # of one that was killed while it wrote
    (queue / "logs" / "y.log.0b.part").touch()  # it may be written now
    for path in (*(queue / "snapshots").iterdir(), *(queue / "secrets").iterdir(), queue / "logs" / "x.log.0a.part"):
        os.utime(path, (1.0, 1.0))
    assert re.fullmatch(
        r"would remove 2 logs, 1 snapshots, 1 secrets, 3 events: 1\.0 MiB\n", run(capsys, "gc", "--dry-run")
    )
    assert run(capsys, "gc").startswith("removed 2 logs, 1 snapshots, 1 secrets, 3 events")
    assert run(capsys, "gc").startswith("removed 0 logs, 0 snapshots, 0 secrets, 0 events")
    assert json.loads(run(capsys, "gc", "--json")) == dict.fromkeys(
        ("logs", "snapshots", "secrets", "events", "size"), 0
    )
    assert store.job(1).state == "succeeded"
    assert len(list((queue / "snapshots").iterdir())) == len(list((queue / "secrets").iterdir())) == 1
    assert Path(store.job(2).environment["A_FILE"]).read_text() == "hunter2"
