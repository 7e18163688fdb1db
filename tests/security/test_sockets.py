"""On one machine nothing listens but on loopback: whoever reaches the machine reaches no part of a run."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from diffusion.private_folder import is_ours, open_to_others, private_folder, read_own, use_private_token
from infra import lifecycle, machine
from infra.stack import Stack
from sampler.service import ServeError, connect
from tests.conftest import ROOT, Cluster, listening
from trainer.runtime.ray_cluster import connect_ray

pytestmark = pytest.mark.integration

CONNECTING = {
    "trainer": "from trainer.runtime.ray_cluster import connect_ray; connect_ray(dashboard=True)",
    "sampler": "from sampler.service import Address, connect, deploy; connect(); "
    "deploy([], Address('127.0.0.1', {port}), num_cpus=1, timeout_s=60)",
}
LOCAL = """
import ray, sys
{connecting}

@ray.remote
class Actor:
    def ready(self): return True

actors = [Actor.remote() for _ in range(2)]
ray.get([actor.ready.remote() for actor in actors])
from ray._private import worker
print(worker._global_node.get_session_dir_path(), flush=True)
sys.stdin.read()
"""


def is_loopback(address: str) -> bool:
    parsed = ip_address(address.split("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@pytest.mark.parametrize("who", list(CONNECTING))
def test_a_local_ray_and_its_workers_listen_on_loopback_in_a_folder_of_their_own(who: str, tmp_path: Path):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TMPDIR"))},
        "HOME": str(tmp_path),
    }
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", LOCAL.format(connecting=CONNECTING[who].format(port=port))],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        session = Path(process.stdout.readline().strip())
        found = set[tuple[str, str]]()
        for _ in range(4):
            children = psutil.Process(process.pid).children(recursive=True)
            found |= listening([process.pid, *(child.pid for child in children)])
            time.sleep(0.5)
        assert len(found) > 5
        assert who != "sampler" or any("Replica" in name for _, name in found)
        assert [each for each in found if not is_loopback(each[0])] == []
        assert private_folder() in session.parents
        assert not open_to_others(session)
        assert not (tmp_path / ".ray").exists(), "Ray's own token, which others could read"
        process.communicate("", timeout=60)


TRAINING = {
    "trainer": ["-m", "trainer", "--config", "{config}"],
    "profile": ["-m", "trainer.profile", "{config}", "--steps", "20", "--out", "{out}"],
}


@pytest.mark.parametrize("what", [pytest.param("trainer", marks=pytest.mark.slow), "profile"])
def test_two_workers_that_train_on_a_ray_of_their_own_listen_on_loopback(what: str, tmp_path: Path):
    settings = {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "training": {"steps": 200, "global_batch_size": 8},
        "evaluation": {"metrics": ["denoising"]},
        "parallel": {"workers": 2},
        "run": {"storage": str(tmp_path / "storage"), "experiment": "heard"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    words = [word.format(config=tmp_path / "run.yaml", out=tmp_path / "out") for word in TRAINING[what]]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "MLFLOW_"))
    }
    environment["HOME"] = str(tmp_path)  # where no other Ray has left its address
    found = set[tuple[str, str]]()
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None:
            with suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                found |= listening([process.pid, *(child.pid for child in children)])
            time.sleep(0.3)
    said = (tmp_path / "log").read_text()
    assert [each for each in found if not is_loopback(each[0])] == []
    assert process.returncode == 0, said
    assert any(name.startswith(("ray::", "python")) for _, name in found), "workers, and gloo in them"


def test_nothing_of_the_stack_listens_elsewhere(cluster: Cluster):
    """Whatever the tests before have run on it: training, evaluation, sweeps, the queue, the sampler."""
    deadline = time.monotonic() + 30
    while not cluster.listening:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [each for each in cluster.listening if not is_loopback(each[0])] == []
    assert not open_to_others(Path(cluster.stack.scratch, "ray"))


def test_a_folder_that_somebody_else_has_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / f"dualview-{os.getuid()}"
    monkeypatch.setattr("diffusion.private_folder.TEMPORARY", str(tmp_path))
    assert private_folder() == there
    there.chmod(0o777)
    assert private_folder() != there
    there.rmdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    there.symlink_to(tmp_path / "theirs")
    assert private_folder() != there


def test_a_folder_is_open_where_others_can_come_to_it(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for each in (tmp_path / "a" / "b", tmp_path / "a"):
        each.chmod(0o777)
    inner = tmp_path / "a" / "b"
    reachable = all(each.stat().st_mode & 0o001 for each in inner.parents)
    assert open_to_others(inner) == reachable
    (tmp_path / "a").chmod(0o700)
    assert not open_to_others(inner)


@pytest.mark.parametrize("join", [connect, connect_ray])
def test_a_ray_whose_folder_is_open_to_others_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], join: Callable[[], None]
):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    node = SimpleNamespace(get_session_dir_path=lambda: str(folder), head=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere")
    monkeypatch.setattr("ray.init", lambda *_, **__: None)
    monkeypatch.setattr("ray._private.worker._global_node", node)
    try:
        for _ in range(2):
            join()
    finally:
        folder.rmdir()
    said = capsys.readouterr().err
    assert said.count(f"warning: every user of this machine can replace the code of jobs in {folder}") == 1


@pytest.mark.parametrize(
    ("group", "members", "mode", "ours"),
    [
        ("me", [], 0o664, True),
        ("me", ["me"], 0o664, True),
        ("me", ["other"], 0o664, False),
        ("team", [], 0o664, False),
        ("team", [], 0o644, True),
        ("me", [], 0o666, False),
    ],
)
def test_what_a_group_can_write_to_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], mode: int, ours: bool
):
    """Unless the group is the user's own, as many systems give everybody one."""
    file = tmp_path / "run.json"
    file.write_text("{}")
    file.chmod(mode)
    gid = file.stat().st_gid

    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_gid=gid, gr_name=group, gr_mem=members))
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_gid=gid, pw_name="me"))
    assert is_ours(file) == (read_own(file) is not None) == ours


def test_a_cluster_that_somebody_else_has_left_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "ray_current_cluster"
    assert read_own(file) is None
    file.write_text("127.0.0.1:6379\n")
    file.chmod(0o644)
    assert read_own(file) == "127.0.0.1:6379"
    (tmp_path / "link").symlink_to(file)
    assert read_own(tmp_path / "link") is None
    os.mkfifo(tmp_path / "pipe")
    assert read_own(tmp_path / "pipe") is None
    file.chmod(0o666)
    assert read_own(file) is None
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sampler.service.get_ray_address_file", lambda _: str(file))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:6379"})
    with pytest.raises(ServeError, match="no cluster to join"):
        connect(start_if_none=False)
    file.chmod(0o644)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert read_own(file) == ("127.0.0.1:6379" if file.stat().st_uid == 0 else None)


def test_the_token_of_a_ray_that_we_start_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffusion.private_folder.TEMPORARY", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    use_private_token()
    file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    token = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(token) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    use_private_token()
    assert file.read_text() == token
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/elsewhere")
    use_private_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/elsewhere"


def test_a_port_that_somebody_else_took_is_shown_no_token(tmp_path: Path):
    """Whoever listens where the stack's agent should is faster than it, and would be sent Ray's token."""
    if os.getuid():
        pytest.skip("a socket of another user takes root")
    listen = (
        "import os, socket, sys\nos.setuid(65534)\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\nconnection = server.accept()[0]\n"
        "print(connection.recv(1000), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert machine.is_taken_by_others(port)
        with socket.create_server(("127.0.0.1", 0)) as own:
            assert not machine.is_taken_by_others(own.getsockname()[1])
        (tmp_path / "ray_token").write_text("hunter2")
        ports = dict.fromkeys(lifecycle.PREFERRED_PORTS, port)
        stack = Stack("0" * 32, ports, str(tmp_path), kept=False)
        with pytest.raises(lifecycle.StackError, match=f"port {port} was taken by another user while mlflow started"):
            lifecycle._wait(stack, tmp_path)
        assert "b''" in other.stdout.readline(), "nothing is sent over the connection"


def test_who_accepted_and_said_all_is_shown_no_token(monkeypatch: pytest.MonkeyPatch):
    """Nobody listens any more, and the half of the connection that is left has no owner."""
    if os.getuid():
        pytest.skip("a socket of another user takes root")
    listen = (
        "import os, socket\nos.setuid(65534)\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\nconnection = server.accept()[0]\nserver.close()\n"
        "connection.shutdown(socket.SHUT_WR)\nprint('shut', flush=True)\nprint(connection.recv(1000), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as other:
        out = other.stdout
        assert out is not None
        port, look = int(out.readline()), machine.is_taken_by_others

        def once_it_is_shut(at: int) -> bool:
            assert out.readline() == "shut\n"
            return look(at)

        monkeypatch.setattr(machine, "is_taken_by_others", once_it_is_shut)
        with pytest.raises(OSError, match=f"who answers at port {port} is not known to be ray"):
            lifecycle._check("ray", port, "/", {"Authorization": "Bearer hunter2"})
        assert "b''" in out.readline(), "nothing is sent over the connection"


@pytest.mark.parametrize("then", ["", "connection.shutdown(socket.SHUT_WR)"], ids=["waits", "has said all"])
def test_a_port_that_somebody_else_took_between_two_looks_is_shown_no_token(then: str):
    """Whoever has accepted the connection is looked at, and not whoever listens a moment earlier or later."""
    if os.getuid():
        pytest.skip("a socket of another user takes root")
    listen = (
        "import os, socket, sys\nos.setuid(65534)\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\nconnection = server.accept()[0]\nserver.close()\n"
        f"{then}\nprint('accepted', flush=True)\nprint(connection.recv(1000), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert other.stdout.readline() == "accepted\n"
            assert not machine.is_taken_by_others(port), "nobody listens there any more"
            assert not machine.is_answered_by_us(port, connection.getsockname()[1])
            connection.sendall(b"nothing yet")
        assert "nothing yet" in other.stdout.readline()
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            client = connection.getsockname()[1]
            assert machine.is_answered_by_us(port, client), "which nobody has accepted yet"
            with own.accept()[0] as accepted:
                assert machine.is_answered_by_us(port, client)
                own.close()
                assert machine.is_answered_by_us(port, client), "who listens now says nothing of it"
                accepted.shutdown(socket.SHUT_WR)
                assert not machine.is_answered_by_us(port, client), "it could be anybody's"
