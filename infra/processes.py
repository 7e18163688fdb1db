"""Processes of a local stack on Linux: start them, find every descendant, stop these and no others.

Every process of a stack has the stack's id in its environment, and so do the processes it starts: Ray's workers leave
their process group and session, but inherit the environment. A pid alone is never trusted: a signal is sent through a
pidfd, to a process whose environment was read after the pidfd was opened, so that a recycled pid is never signalled.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STACK_ID_VARIABLE = "DUALVIEW_STACK_ID"
# Ray renames its processes; unless told otherwise the new title overwrites the environment that /proc shows.
KEEP_ENVIRONMENT_READABLE = {"SPT_NOENV": "1"}


@dataclass(frozen=True)
class ProcessId:
    """A pid and its start time (clock ticks since boot), which together identify one process for good."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return _start_time(self.pid) == self.started


def spawn(command: list[str], environment: Mapping[str, str], log: Path) -> ProcessId:
    """Starts `command` in a session of its own with all output to `log` (truncated first); does not wait for it.

    Raises:
        OSError: The command cannot be executed.
    """
    output = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
    pid = os.posix_spawn(command[0], command, environment, file_actions=files, setsid=True)
    return ProcessId(pid, _start_time(pid) or 0)


def stack_pids(stack_id: str) -> list[int]:
    """Pids of all live processes with the stack's id in their environment, except this process."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _has_stack_id(pid, stack_id)]


def stop_stack(stack_id: str, grace_s: float = 2.0, timeout_s: float = 20.0) -> list[int]:
    """Sends SIGTERM to every process of the stack, after `grace_s` seconds SIGKILL to those left, and waits.

    Returns:
        The pids still alive after `timeout_s` seconds: empty unless the kernel holds one in an uninterruptible call.
    """
    begin = time.monotonic()
    for pid in stack_pids(stack_id):
        _signal(pid, stack_id, signal.SIGTERM)
    while (left := stack_pids(stack_id)) and time.monotonic() - begin < timeout_s:
        if time.monotonic() - begin > grace_s:
            for pid in left:
                _signal(pid, stack_id, signal.SIGKILL)
        time.sleep(0.05)
    return left


def last_lines(log: Path, count: int = 8) -> str:
    """The last lines of a log file, indented, for an error message."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (empty)"


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _has_stack_id(pid: int, stack_id: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{STACK_ID_VARIABLE}={stack_id}".encode() in environment.split(b"\0")


def _signal(pid: int, stack_id: str, number: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _has_stack_id(pid, stack_id):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
