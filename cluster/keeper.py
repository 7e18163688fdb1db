"""Runs a job's command, and ends with it whatever it has left behind: a daemon would hold a GPU that Ray calls free.

The text of this file is sent to the node of the job and run by the Python that is found there, of any version from 3.6
on, so it needs nothing but the standard library. Linux gives the children of a process that has ended to the nearest
ancestor that asked for them, which is this one.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

GRACE_S = 5.0  # between SIGTERM and SIGKILL for what is left behind
STOP_GRACE_S = 150.0  # for all processes of a job that is being stopped: Ray kills them after 120
PR_SET_CHILD_SUBREAPER = 36


class Keeper:
    """Keeps one command.

    Attributes:
        asked: whether the job was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False

    def keep(self, command: "list[str]") -> int:
        """Run a command to its end, then end what it has left.

        Whoever stops a job signals all its processes, so a signal is not passed on: the command would get it twice.

        Returns:
            The command's exit code; where a signal ended it, this process ends by the same.
        """
        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)  # unlike an ignored one it is as usual for the command
        started = os.fork()
        if not started:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            os.execv("/bin/sh", ["sh", "-c", 'exec "$@"', "sh", *command])  # noqa: S606 - as Ray's own shell runs it
        ended, status = os.wait()
        while ended != started:
            ended, status = os.wait()
        self._end_the_rest()
        if not os.WIFSIGNALED(status):
            return os.WEXITSTATUS(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left its own
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
        return 128 + os.WTERMSIG(status)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def _end_the_rest(self) -> None:
        """End what is left: those of a job that was asked to stop know it already, and are given their time."""
        began = time.monotonic()
        told: set[int] = set()
        while _has_children():
            late = time.monotonic() > began + (STOP_GRACE_S if self.asked else GRACE_S)
            if late and time.monotonic() > began + STOP_GRACE_S + GRACE_S:
                return  # not even SIGKILL ends them
            for child in _children():
                if late or not (self.asked or child in told):
                    if child not in told:
                        text = "(process {}, which the command has left behind, is ended)"
                        print(text.format(child), file=sys.stderr, flush=True)
                        told.add(child)
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


def _children() -> "set[int]":
    """The processes whose parent this one is."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open("/proc/" + name + "/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent == os.getpid():
                found.add(int(name))
    return found


if __name__ == "__main__":
    sys.exit(Keeper().keep(sys.argv[1:]))
