"""Runs a job's command, and ends with it whatever it has left behind: a daemon would hold a GPU that Ray calls free.

The text of this file is sent to the node of the job and run there by any Python, so it needs nothing but the standard
library. Linux gives the children of a process that has ended to the nearest ancestor that asked for them; this is one.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

GRACE_S = 5.0  # between SIGTERM and SIGKILL
PATIENCE_S = 15.0  # then what not even SIGKILL has ended is left
PR_SET_CHILD_SUBREAPER = 36


def keep(command: list[str]) -> int:
    """Run a command to its end, then end what it has left; returns its exit code, or ends by the signal that ended it.

    Whoever stops a job signals all its processes, so a signal is not passed on: the command would get it twice.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # unlike an ignored one it is as usual for the command
    started = os.fork()
    if not started:
        try:
            os.execvp(command[0], command)  # noqa: S606 - the command is what it is for
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    ended, status = os.wait()
    while ended != started:
        ended, status = os.wait()
    _end_the_rest()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


def _end_the_rest() -> None:
    began, asked = time.monotonic(), set[int]()
    while _has_children() and time.monotonic() < began + PATIENCE_S:
        late = time.monotonic() > began + GRACE_S
        for child in _children() - (set() if late else asked):
            if child not in asked:
                print(f"(process {child}, which the command has left behind, is ended)", file=sys.stderr, flush=True)
            asked.add(child)
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                os.kill(child, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def _has_children() -> bool:
    """Whether any are left, once those that have ended are forgotten."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children() -> set[int]:
    """The processes whose parent this one is."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent == os.getpid():
                found.add(int(name))
    return found


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
