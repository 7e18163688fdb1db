"""What a job's command has started ends with it, and its own end is told as it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import keeper
from cluster.ray_jobs import KEEP_VARIABLE, kept

DAEMON = """
import os, signal, sys, time
if os.fork(): os._exit(int(sys.argv[2]))
os.setsid()
if os.fork(): os._exit(0)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1] + ".part", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def run(*command: str, path: str | None = None, **options) -> subprocess.CompletedProcess[str]:
    """Run a command as Ray's shell does."""
    line, variables = kept(list(command))
    environment = {**os.environ, **variables, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        ["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60, **options
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 3, 75])
def test_a_daemon_ends_with_its_command(tmp_path: Path, code: int):
    script = f'{sys.executable} -c "$0" {tmp_path}/pid {code}; until [ -e {tmp_path}/pid ]; do sleep 0.02; done'
    done = run("bash", "-c", f"{script}; exit {code}", DAEMON)
    pid = int((tmp_path / "pid").read_text())
    assert done.returncode == code
    assert not is_alive(pid)
    assert f"(process {pid}, which the command has left behind, is ended)" in done.stderr


def test_one_that_ignores_being_asked_is_killed(tmp_path: Path):
    script = f'{sys.executable} -c "$0" {tmp_path}/pid 0 stubborn; until [ -e {tmp_path}/pid ]; do sleep 0.02; done'
    began = time.monotonic()
    assert run("bash", "-c", script, DAEMON).returncode == 0
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert time.monotonic() - began >= keeper.GRACE_S


def test_a_command_is_run_as_it_is():
    done = run("printf", "%s|", "a b", "$HOME", "'", '"', "", "grüße", "*")
    assert (done.stdout, done.returncode) == ("a b|$HOME|'|\"||grüße|*|", 0)
    assert KEEP_VARIABLE not in run("env").stdout
    line, variables = kept(["true"])
    assert line == 'exec sh -c "$DUALVIEW_KEEP" sh true'
    assert os.path.expandvars(variables[KEEP_VARIABLE]) == variables[KEEP_VARIABLE]  # as Ray does with each variable


def test_how_a_command_ends_is_told():
    assert run("bash", "-c", "exit 75").returncode == 75
    assert run("bash", "-c", "kill -9 $$").returncode in (-9, 137)
    assert run("bash", "-c", "kill -TERM $$").returncode in (-15, 143)
    missing = run("no-such-command", "x")
    assert missing.returncode == 127
    assert "no-such-command: not found" in missing.stderr


def test_a_command_has_the_signals_of_a_shell():
    """Python ignores some, and what is ignored stays so for a program that is started."""
    found = run("grep", "SigIgn", "/proc/self/status").stdout
    expected = subprocess.run(["/bin/sh", "-c", "grep SigIgn /proc/self/status"], capture_output=True, text=True)
    assert found == expected.stdout
    assert run("bash", "-c", "yes | head -1; exit ${PIPESTATUS[0]}").returncode == 141


def test_scripts_run_as_a_shell_runs_them(tmp_path: Path):
    (tmp_path / "plain").write_text("echo plain $1\n")
    (tmp_path / "plain").chmod(0o755)
    (tmp_path / "locked").write_text("echo never\n")
    assert run(str(tmp_path / "plain"), "x").stdout == "plain x\n"
    assert run(str(tmp_path / "locked")).returncode == 126


def test_a_program_behind_a_script_has_its_time_when_the_job_is_stopped(tmp_path: Path):
    """The script dies of the signal at once; what it started writes its checkpoint, and is asked once."""
    program = (
        "import signal, sys, time\n"
        "asked = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
        "open(sys.argv[1] + '/up', 'w').close()\n"
        "while not asked: time.sleep(0.05)\n"
        "time.sleep(7)\n"
        "open(sys.argv[1] + '/saved', 'w').write(str(len(asked)))\n"
    )
    line, variables = kept(["bash", "-c", f'{sys.executable} -c "$0" {tmp_path}; echo never', program])
    process = subprocess.Popen(
        ["/bin/sh", "-c", line], env={**os.environ, **variables}, stdout=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode in (-15, 143)
    assert (tmp_path / "saved").read_text() == "1"


def test_a_signal_to_all_reaches_the_command_once(tmp_path: Path):
    script = f"trap 'echo asked' TERM; touch {tmp_path}/up; for i in $(seq 20); do sleep 0.1; done; exit 75"
    line, variables = kept(["bash", "-c", script])
    process = subprocess.Popen(
        ["/bin/sh", "-c", line], env={**os.environ, **variables}, stdout=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # the children sleep in the same group
    assert process.communicate(timeout=60)[0] == b"asked\n"
    assert process.returncode == 75


def test_without_python_the_command_runs_all_the_same(tmp_path: Path):
    (tmp_path / "echo").symlink_to("/bin/echo")
    (tmp_path / "sh").symlink_to("/bin/sh")
    assert run("echo", "hello", path=str(tmp_path)).stdout == "hello\n"
