"""The outermost frame of the queue's command: whatever escapes it is one line, and a file with the rest.

The other packages have theirs in `diffusion`, which the queue does not know.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from cluster.errors import FilesUnavailableError, InputError, RayUnavailableError, StoreUnavailableError


def run_command(command: Callable[[], None]) -> int:
    """Run a command; returns its exit code: 0, 2 for what a person can mend, 1 for anything else."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that are not UTF-8  # pyright: ignore
    try:
        command()
        sys.stdout.flush()
    except (InputError, RayUnavailableError) as error:
        return _end(2, f"error: {error}")
    except (StoreUnavailableError, FilesUnavailableError) as error:
        return _end(1, f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at its end fails again
        return 1
    except KeyboardInterrupt:
        return 1
    except Exception as error:  # noqa: BLE001 - that is what this frame is for
        return _end(1, f"failed: {_unforeseen(error)}")
    return 0


def printable(text: str) -> str:
    """The text on one line, with every character that is not printable written as an escape."""
    return visible(" ".join(text.split("\n")).strip(), "")


def visible(text: str, kept: str = "\n\t") -> str:
    """The text with every character that is not printable, but for those that are kept, written as an escape.

    A terminal obeys escape sequences: those of a name or of a program's output may move what it shows, or worse.
    """
    return "".join(each if each.isprintable() or each in kept else ascii(each)[1:-1] for each in text)


def _end(code: int, line: str) -> int:
    print(printable(line), file=sys.stderr)
    return code


def _unforeseen(error: Exception) -> str:
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        number, name = tempfile.mkstemp(prefix="dualview-", suffix=".log")
        with os.fdopen(number, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # a full disk, say
        return line
    return f"{line}  (all of it: {name})"
