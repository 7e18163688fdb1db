"""What this machine offers: CPUs, GPUs, free loopback ports."""

import math
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
LISTENS, ESTABLISHED, BEGINS = "0A", "01", "03"  # states of a socket in /proc/net/tcp


def cpus() -> int:
    """The number of CPUs to offer to Ray: those this process may use, at least 2 so that two workers fit, plus 1.

    The extra one is for the sampler, so that a stack that serves can still train.
    """
    usable = float(len(os.sched_getaffinity(0)))
    if CGROUP_CPU_LIMIT.exists():
        quota, period = CGROUP_CPU_LIMIT.read_text().split()
        usable = usable if quota == "max" else min(usable, int(quota) / int(period))
    return max(2, math.ceil(usable)) + 1


def gpus() -> int:
    """The number of GPUs a process may use: those that `nvidia-smi -L` lists, limited by CUDA_VISIBLE_DEVICES."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        present if visible is None else min(present, sum(name.strip() not in ("", "-1") for name in visible.split(",")))
    )


def free_ports(preferred: Sequence[int]) -> list[int]:
    """A free loopback port for each preferred one: that port if it is free, else any other; all different."""
    with ExitStack() as held:
        return [held.enter_context(_listen(port)).getsockname()[1] for port in preferred]


def is_taken_by_others(port: int) -> bool:
    """Whether a process of another user listens at a port of this machine."""
    return any(state == LISTENS and owner != os.getuid() for _, state, owner in _sockets(port))


def is_answered_by_us(port: int, client: int) -> bool:
    """Whether the other end of a connection to a port of this machine is known to be a process of this user.

    A connection that nobody has accepted yet has no owner: it is that of whoever listens. One that is being closed has
    none either, and may be anybody's.

    Args:
        port: of this machine.
        client: port that the connection was made from.
    """
    sockets, own = list(_sockets(port)), os.getuid()
    listeners = {owner for _, state, owner in sockets if state == LISTENS}
    known = {own, 0} if own in listeners else {own}
    ends = {owner for remote, state, owner in sockets if remote == client and state in (ESTABLISHED, BEGINS)}
    return listeners <= {own} and bool(ends) and ends <= known


def _sockets(port: int) -> Iterator[tuple[int, str, int]]:
    """The remote port, the state and the user of each socket at a port of this machine."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), open(table) as lines:
            for _, local, remote, state, *_, owner, _, _ in (line.split()[:10] for line in lines):
                if state in (LISTENS, ESTABLISHED, BEGINS) and _port(local) == port:
                    yield _port(remote), state, int(owner)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _listen(port: int) -> socket.socket:
    for choice in (port, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a minute ago is free
        try:
            listening.bind(("127.0.0.1", choice))
            listening.listen()
        except OSError:
            listening.close()
        else:
            return listening
    raise OSError("no free port on 127.0.0.1")
