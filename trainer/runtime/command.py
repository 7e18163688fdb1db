"""How a command ends that the same command line resumes: one line on stderr and an exit code, whatever happens."""

import sys
from collections.abc import Callable

from trainer.errors import ClusterLostError, InputError, RunFailedError, last_line
from trainer.runtime.stop import EXIT_CODE, Preempted, Stop, listening

AGAIN = "run the same command again to resume"


def resumable(command: Callable[[Stop], int]) -> int:
    """Run a command that can be asked to stop; returns its exit code.

    Returns:
        The command's own; 2 for bad input; 75 if it was asked to stop or the cluster was lost; 1 for anything else.
    """
    with listening() as stop:
        try:
            return command(stop)
        except InputError as error:
            return _end(2, f"error: {error}")
        except Preempted as reason:
            return _end(EXIT_CODE, f"preempted ({reason}); {AGAIN}")
        except ClusterLostError as error:
            return _end(EXIT_CODE, f"failed: {error}; {AGAIN}")
        except RunFailedError as error:
            return _end(1, f"failed: {error}; {AGAIN}")
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, its last line says what went wrong
            from trainer.runtime.cluster_watch import is_loss

            code = EXIT_CODE if is_loss(error) else 1
            return _end(code, f"failed: {type(error).__name__}: {last_line(error)}; {AGAIN}")


def _end(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code
