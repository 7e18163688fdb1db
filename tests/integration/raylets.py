"""A Ray cluster of several raylets on this machine, each with its own labels, folder and ports."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

START_S = 60.0


@dataclass
class Raylets:
    """A running cluster.

    Attributes:
        environment: the variables with which commands find it.
        address: its dashboard.
        processes: name of a node -> the process whose end is the node's.
    """

    environment: dict[str, str]
    address: str
    folder: Path
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def start(self, name: str, cpus: int, labels: Mapping[str, str], *options: str) -> None:
        """Start a node; its label `name` is its name."""
        shown = ",".join(f"{key}={value}" for key, value in {"name": name, **labels}.items())
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            f"--num-cpus={cpus}",
            "--node-ip-address=127.0.0.1", f"--labels={shown}", f"--temp-dir={self.folder / name}",
            f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
            f"--memory={2 * 2**30}", f"--object-store-memory={100 * 2**20}", *options,
        ]  # fmt: skip
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, name: str) -> None:
        """End a node and all its processes at once, as a machine that is switched off."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def nodes(self) -> dict[str, str]:
        """Name -> Ray's id of the nodes that are alive."""
        rows = self._get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return {row["labels"]["name"]: row["node_id"] for row in rows if row["state"] == "ALIVE"}

    def node_of(self, submission_id: str) -> str:
        """The id of the node that a job's command runs on."""
        return self._get(f"/api/jobs/{submission_id}")["driver_node_id"]

    def _get(self, path: str) -> dict[str, Any]:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())

    def wait(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                if len(self.nodes()) == count:
                    return
            except (OSError, KeyError, ValueError):
                pass
            logs = "\n".join(path.read_text()[-1000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"the cluster did not start:\n{logs}"
            time.sleep(0.2)


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def raylets(nodes: Mapping[str, Mapping[str, str]], cpus: int = 2) -> Iterator[Raylets]:
    """A cluster of these nodes, by name, with these labels; the first one is the head."""
    folder = Path(tempfile.mkdtemp(prefix="dv"))  # a short one: sockets have 107 bytes
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    dashboard, gcs = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "TMPDIR": str(folder),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }  # fmt: skip
    cluster = Raylets(environment, f"http://127.0.0.1:{dashboard}", folder)
    try:
        head, *others = nodes
        cluster.start(head, cpus, nodes[head], "--head", f"--port={gcs}", f"--dashboard-port={dashboard}")
        cluster.wait(1)
        for name in others:
            cluster.start(name, cpus, nodes[name], f"--address=127.0.0.1:{gcs}")
        cluster.wait(len(nodes))
        environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
        yield cluster
    finally:
        for name in list(cluster.processes):
            cluster.end(name)
        for process in psutil.process_iter():  # jobs have sessions of their own, and outlive a node that is killed
            with suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN_PATH") == str(token):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
