"""What commands share: how those end that the same command line resumes, and the option that says what they keep."""

import argparse
import sys
from collections.abc import Callable

from diffusion.command import end, end_of_pipe, plain_output, unforeseen
from trainer.errors import ClusterLostError, InputError, RunFailedError, last_line
from trainer.runtime.stop import EXIT_CODE, Preempted, Stop, listening

AGAIN = "run the same command again to resume"


def resumable(command: Callable[[Stop], int]) -> int:
    """Run a command that can be asked to stop; returns its exit code.

    Returns:
        The command's own; 2 for bad input; 75 if it was asked to stop or the cluster was lost; 1 for anything else.
    """
    plain_output()
    with listening() as stop:
        try:
            code = command(stop)
            sys.stdout.flush()
        except BrokenPipeError as error:
            return end_of_pipe(error)
        except InputError as error:
            return end(2, f"error: {error}")
        except Preempted as reason:
            return end(EXIT_CODE, f"preempted ({reason}); {AGAIN}")
        except ClusterLostError as error:
            return end(EXIT_CODE, f"failed: {error}; {AGAIN}")
        except RunFailedError as error:
            return end(1, f"failed: {error}; {AGAIN}")
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, its last line says what went wrong
            from trainer.runtime.cluster_watch import is_loss

            if is_loss(error):
                return end(EXIT_CODE, f"failed: {type(error).__name__}: {last_line(error)}; {AGAIN}")
            return end(1, f"failed: {unforeseen(error, last_line(error))}; {AGAIN}")
        return code


def add_keep(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --keep, which says what stays of a run, or of each run, once it is done."""
    parser.add_argument(
        "--keep",
        choices=("all", "latest", "package"),
        help=f"what stays of {what} once it is done: all; latest, the newest checkpoint, from which it can be "
        "lengthened; or package, with the results (the setting run.keep; default: all)",
    )


def kept(options: argparse.Namespace) -> list[str]:
    """The change of the settings that --keep stands for."""
    return [f"run.keep={options.keep}"] if options.keep else []
