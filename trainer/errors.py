"""What may go wrong in a way that a person can act on, and the text of other people's errors on one line."""


class RunFailedError(Exception):
    """The run cannot go on; one line for the user, exit code 1."""


def last_line(error: BaseException) -> str:
    """The last line of an error's text: where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class InputError(Exception):
    """Bad input: one line naming field, value and what is allowed. Commands print it and exit with 2."""


class BusyError(InputError):
    """Another process holds what this one wants to work on."""


def one_line(error: BaseException) -> str:
    """An error's text on one line, short enough to print."""
    return " ".join(str(error).split())[:300] or type(error).__name__
