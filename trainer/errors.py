"""Errors that a user can act on, and one-line texts of other libraries' errors."""


class RunFailedError(Exception):
    """The run cannot go on; the message is one line for the user, and the exit code is 1 unless a subclass says so."""


class ClusterLostError(RunFailedError):
    """The cluster, or a part of it that the run needs, is gone: the exit code is 75, and the same command goes on."""


class HungError(ClusterLostError):
    """The ranks take no step any more; their processes are still there."""


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class InputError(Exception):
    """Bad input: one line with the field, its value and what is allowed. Commands print it and exit with 2."""


class BusyError(InputError):
    """Another process holds the lock that this one needs."""


def one_line(error: BaseException) -> str:
    """An error's text on one line, short enough to print."""
    return " ".join(str(error).split())[:300] or type(error).__name__
