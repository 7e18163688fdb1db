"""`python -m infra.local`: the local stack and the main job of `make run`.

Runs the other commands as subprocesses and imports none of them, so that it starts fast.
"""

import argparse
import sys
from pathlib import Path

from infra import lifecycle, machine, screen, signals
from infra.main_job import CommandError, MainJob, run
from infra.stack import StackError, load

ROOT = Path(__file__).resolve().parents[1]
VAR = ROOT / "var"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m infra.local",
        description="A local Ray head and MLflow server (loopback only; Ray asks for a token), and the main job.",
        epilog="exit codes: 0 done; 2 bad input; 75 preempted after a checkpoint (run it again); 1 anything else",
    )
    commands = result.add_subparsers(dest="command", required=True)
    main_job = commands.add_parser(
        "run", help="train, evaluate, register, serve, sample over HTTP, then stop everything"
    )
    main_job.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of the run's configuration"
    )
    main_job.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help="override a setting"
    )
    main_job.add_argument("--keep", action="store_true", help="leave Ray, MLflow and the sampler running")
    commands.add_parser("up", help="start Ray and MLflow and leave them running")
    commands.add_parser("stop", help="stop the stack and every process it started")
    commands.add_parser("status", help="print what is running, and its addresses")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parser().parse_args(arguments)
    signals.exit_on_signals()
    try:
        match options.command:
            case "run":
                _run(options)
            case "up":
                _up()
            case "stop":
                _stop()
            case _:
                _status()
    except CommandError as error:
        return error.exit_code
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever nobody foresaw is one line, and a file with the rest
        print(f"failed: {screen.unforeseen(error)}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    overrides = tuple(options.overrides)
    if machine.gpus() == 1 and not any(change.startswith("parallel.workers=") for change in overrides):
        overrides += ("parallel.workers=1",)
        print("one GPU: one worker (parallel.workers=1), since NCCL cannot place two ranks on one GPU; same run")
    with lifecycle.checkout_lock(VAR):
        run(MainJob(ROOT, options.config.absolute(), overrides, options.keep))


def _up() -> None:
    with lifecycle.checkout_lock(VAR):
        stack = load(VAR)
        if stack is None or not stack.alive():
            with screen.phase("starting Ray and MLflow") as done:
                stack = lifecycle.up(ROOT, VAR, kept=True)
                done("Ray and MLflow are running")
    print(screen.format_addresses(stack))


def _stop() -> None:
    with signals.uninterrupted(), screen.phase("stopping") as done:
        done("everything stopped" if lifecycle.stop(VAR) else "nothing was running")


def _status() -> None:
    stack = load(VAR)
    if stack is not None and stack.alive():
        print(screen.format_addresses(stack))
    else:
        print("nothing is running (make up, make run KEEP=1)")


if __name__ == "__main__":
    sys.exit(main())
