"""The outermost frame of every command: whatever escapes it is one line for a person, and a file with the rest.

Nothing that a file, a server or another program wrote reaches the terminal as anything but printable text.
"""

import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress

BAD_INPUT = 2


def run_command(command: Callable[[], int], bad_input: type[Exception] | tuple[type[Exception], ...]) -> int:
    """Run a command to its exit code, whatever happens.

    Args:
        command: returns its exit code.
        bad_input: errors that a person can act on; printed as they are, with exit code 2.

    Returns:
        The command's own code; 2 for bad input; 1 where it was interrupted, nobody reads its output any more, or
        something happened that nobody foresaw.
    """
    plain_output()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError as error:
        return end_of_pipe(error)
    except bad_input as error:
        return end(BAD_INPUT, f"error: {error}")
    except KeyboardInterrupt:
        return end(1, "interrupted")
    except Exception as error:  # noqa: BLE001 - that is what this frame is for
        return end(1, f"failed: {unforeseen(error)}")
    return code


def end(code: int, line: str) -> int:
    """Print one line to stderr, and return the exit code."""
    print(printable(line), file=sys.stderr)
    return code


def unforeseen(error: BaseException, text: str | None = None) -> str:
    """An error that nobody foresaw, in one line that names the file with all of it.

    Args:
        error: the error.
        text: what to say of it; None for its own text.
    """
    text = " ".join((str(error) if text is None else text).split())
    line = f"{type(error).__name__}{': ' if text else ''}{text[:300]}"
    try:
        number, name = tempfile.mkstemp(prefix="dualview-", suffix=".log")
        with os.fdopen(number, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # a full disk, say
        return line
    return f"{line}  (all of it: {name})"


def printable(text: str) -> str:
    """The text on one line, with every character that is not printable written as an escape."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split("\n")).strip())


def plain_output() -> None:
    """Have standard output and error escape what they cannot encode, such as names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def end_of_pipe(error: BrokenPipeError) -> int:
    """End a command where a pipe broke: without a word if nobody reads its output any more; returns the exit code."""
    if not _reader_is_gone():
        return end(1, f"failed: {unforeseen(error)}")
    # so that Python's own flush at its end does not fail again
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more; what was buffered may be lost by now."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # a standard output that is no file
        poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
