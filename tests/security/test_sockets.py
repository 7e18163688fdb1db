"""On one machine nothing listens but on loopback: whoever reaches the machine reaches no part of a run."""

import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from diffusion.private_folder import is_ours, private_folder
from tests.conftest import ROOT, Cluster, listening
from trainer.runtime.ray_cluster import open_to_others

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
def test_a_local_ray_and_its_workers_listen_on_loopback_in_a_folder_of_their_own(who: str):
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TMPDIR")}
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
        process.communicate("", timeout=60)


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


def test_a_cluster_that_somebody_else_has_left_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "ray_current_cluster"
    assert not is_ours(file)
    file.write_text("127.0.0.1:6379")
    file.chmod(0o644)
    assert is_ours(file)
    file.chmod(0o666)
    assert not is_ours(file)
    file.chmod(0o644)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert is_ours(file) == (file.stat().st_uid == 0)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert not is_ours(link)
