"""Starting and stopping the local stack.

State lives under `var/`: `stack.json` (written before anything is started, so that `stop` finds it whatever happens),
`stack.env`, `ray_token` (mode 0600), `log/`, `mlflow/` (database and artifacts), `runs/` (checkpoints and results). The
last two outlive the stack.
"""

import dataclasses
import fcntl
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import quote

from infra import machine, processes
from infra.stack import PREFERRED_PORTS, Stack, StackError, addresses, environment, load, save

START_TIMEOUT_S = 120.0


def up(root: Path, var: Path, kept: bool) -> Stack:
    """Starts the stack and returns once Ray and MLflow answer. The caller holds `checkout_lock`.

    Raises:
        StackError: It did not come up within `START_TIMEOUT_S` seconds; whatever had been started is stopped.
    """
    stop(var)
    for directory in (var / "log", var / "mlflow", var / "runs"):
        directory.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(PREFERRED_PORTS, machine.free_ports(list(PREFERRED_PORTS.values())), strict=True))
    stack = Stack(uuid.uuid4().hex, ports, tempfile.mkdtemp(prefix="dualview-", dir="/tmp"), kept)
    save(stack, var)
    try:
        return _start(stack, root, var)
    except BaseException:
        stop(var)
        raise


def stop(var: Path) -> bool:
    """Stops every process of the recorded stack and removes its temporary files; False when none is recorded.

    Raises:
        StackError: A process survived SIGKILL.
    """
    stack = load(var)
    if stack is None:
        return False
    if left := processes.stop_stack(stack.id):
        raise StackError(f"processes {left} of the local stack cannot be stopped; try `make stop` again")
    if Path(stack.scratch).name.startswith("dualview-"):
        shutil.rmtree(stack.scratch, ignore_errors=True)
    for name in ("ray_token", "stack.env", "stack.json"):
        (var / name).unlink(missing_ok=True)
    return True


@contextmanager
def checkout_lock(var: Path) -> Iterator[None]:
    """Holds the checkout's lock, so that no two commands start or stop its stack at the same time.

    Raises:
        StackError: Another command holds it.
    """
    var.mkdir(parents=True, exist_ok=True)
    with (var / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("another `make run` is running in this checkout; wait for it, or stop it first") from None
        yield


def fetch(
    url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None, timeout_s: float = 5.0
) -> HTTPResponse:
    """Sends one HTTP request (a POST if there is a body) to a part of the stack, past any proxy.

    Raises:
        OSError: No answer within `timeout_s` seconds, or an error status (then urllib.error.HTTPError).
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}))  # noqa: S310 - our own http addresses
    return opener.open(request, timeout=timeout_s)


def _start(stack: Stack, root: Path, var: Path) -> Stack:
    _write_private(var / "ray_token", secrets.token_hex(32))
    exports = (f"export {name}={shlex.quote(value)}\n" for name, value in addresses(stack, var).items())
    _write_private(var / "stack.env", "".join(exports))
    env = environment(stack, root, var, machine.gpus())
    commands = {"ray": _ray_command(stack), "mlflow": _mlflow_command(stack, var)}
    # Without its job runner, which nothing here uses, MLflow starts in half the time and with 8 processes fewer.
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env |= {"TMPDIR": stack.scratch}  # Ray's dashboard leaves sockets behind, and what is killed its temporary files
    try:
        started = {name: processes.spawn(command, env, _log(var, name)) for name, command in commands.items()}
    except OSError as error:
        raise StackError(f"cannot run {error.filename}: {error.strerror}; `make run` installs it") from error
    stack = dataclasses.replace(stack, processes=started)
    save(stack, var)
    _wait(stack, var)
    return stack


def _ray_command(stack: Stack) -> list[str]:
    options = {
        "node-ip-address": "127.0.0.1",
        "port": stack.ports["ray"],
        "ray-client-server-port": stack.ports["client"],
        "dashboard-agent-listen-port": stack.ports["agent"],
        "include-dashboard": "true",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": stack.ports["dashboard"],
        "num-cpus": machine.cpus(),
        "temp-dir": f"{stack.scratch}/ray",  # Ray opens it to everybody; nobody comes to it
        "log-color": "false",
    }
    return [_script("ray"), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]


def _mlflow_command(stack: Stack, var: Path) -> list[str]:
    database = f"sqlite:///{quote(str(var / 'mlflow' / 'mlflow.db'))}"
    options = {
        "host": "127.0.0.1",
        "port": stack.ports["mlflow"],
        "workers": 1,
        "backend-store-uri": database,
        "artifacts-destination": var / "mlflow" / "artifacts",
    }
    server = [_script("mlflow"), "server", *(f"--{name}={value}" for name, value in options.items())]
    # A server that is killed while it makes its database leaves one that no server can use, so that is made first.
    make = shlex.join([sys.executable, "-m", "trainer.tracking.database", database])
    return ["/bin/sh", "-c", f"{make} && exec {shlex.join(server)}"]


def _wait(stack: Stack, var: Path) -> None:
    token = {"Authorization": f"Bearer {(var / 'ray_token').read_text()}"}
    checks = [
        ("mlflow", stack.ports["mlflow"], "/health", dict[str, str]()),
        ("ray", stack.ports["dashboard"], "/api/version", token),
        ("ray", stack.ports["agent"], "/api/local_raylet_healthz", token),
    ]
    deadline = time.monotonic() + START_TIMEOUT_S
    while checks:
        name, port, path, headers = checks[0]
        try:
            _check(name, port, path, headers)
            checks.pop(0)
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline or not stack.processes[name].alive():
                log = _log(var, name)
                raise StackError(f"{name} did not start ({error}); {log} ends:\n{processes.last_lines(log)}") from error
            time.sleep(0.1)


def _check(name: str, port: int, path: str, headers: Mapping[str, str]) -> None:
    """Ask a part of the stack whether it is there, once it is known whose the other end of the connection is.

    Raises:
        StackError: it is another user's, who was faster, and would be shown the token.
        OSError: no answer, an error status, or whose the other end is cannot be told.
        HTTPException: an answer that is none.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.connect()
        if machine.is_taken_by_others(port):
            raise StackError(f"port {port} was taken by another user while {name} started; try again")
        if not machine.is_answered_by_us(port, connection.sock.getsockname()[1]):
            raise OSError(f"who answers at port {port} is not known to be {name}")
        connection.request("GET", path, headers=dict(headers))
        if (status := connection.getresponse().status) != 200:
            raise OSError(f"it answers with status {status}")
    finally:
        connection.close()


def _log(var: Path, name: str) -> Path:
    return var / "log" / f"{name}.log"


def _script(name: str) -> str:
    """Path of a command in this process's virtual environment."""
    return str(Path(sys.executable).parent / name)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
