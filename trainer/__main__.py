"""`python -m trainer`: train, evaluate and register one diffusion model on a Ray cluster.

Whatever takes time to import is imported when it is needed, so that --help answers at once, and so that a request to
stop is heeded from the first line of `main` on.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.command import BAD_INPUT, end, end_of_pipe, plain_output, printable, unforeseen
from diffusion.json_text import json_text
from trainer.errors import InputError
from trainer.runtime.command import add_keep, kept
from trainer.runtime.stop import EXIT_CODE, Preempted, Stop, exit_process, listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config.run_config import RunConfig
    from trainer.run.identity import Resolved

EXAMPLES = """\
examples:
  python -m trainer --config configs/digits.yaml
  python -m trainer --config configs/digits.yaml --set objective.prediction=score --set optim.lr=5e-4
  python -m trainer --config configs/digits.yaml --dry-run          # what would run; starts nothing
  ray job submit --working-dir . -- python -m trainer --config configs/digits.yaml

Running the same command again resumes from the newest complete checkpoint. Results are in
<run.storage>/<run.experiment>/<run.name>/results; --dry-run shows the folder.

On SIGTERM or Ctrl-C, or when a heartbeat to DUALVIEW_QUEUE_URL is answered with "preempt", workers that train write a
checkpoint after the current step or the next, and the run ends; a second SIGTERM or Ctrl-C ends it at once.

exit codes: 0 done; 2 bad input, before any worker starts; 75 preempted, run the same command again; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train, evaluate and register one diffusion model, on the cluster of RAY_ADDRESS or a local one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML run file, such as configs/digits.yaml"
    )
    result.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="PATH=VALUE",
        help="change a setting, e.g. optim.lr=5e-4; repeatable; a new *.kind resets its group to that kind's defaults",
    )  # fmt: skip
    add_keep(result, "the run")
    result.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    result.add_argument(
        "--from-scratch",
        action="store_true",
        help="train from step 0 again where the run's checkpoints are all damaged; they are kept aside",
    )
    result.add_argument("--json", action="store_true", help="with --dry-run: as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    plain_output()
    with listening() as stop:
        options = parser().parse_args(arguments)
        if options.json and not options.dry_run:
            parser().error("--json goes with --dry-run")
        if options.from_scratch and options.dry_run:
            parser().error("--from-scratch does not go with --dry-run")
        try:
            code = _run(options, stop)
            sys.stdout.flush()
        except InputError as error:
            return end(BAD_INPUT, f"error: {error}")
        except BrokenPipeError as error:
            return end_of_pipe(error)
        except OSError as error:
            print(f"failed: the run's files cannot be read or written: {printable(str(error))}")
            return 1
        except Preempted as reason:
            print(f"preempted ({reason}) before the run began; the same command starts it")
            return EXIT_CODE
        except Exception as error:  # noqa: BLE001 - one line for the user, the traceback in a file
            return end(1, f"failed: {unforeseen(error)}")
        return code


def _run(options: argparse.Namespace, stop: Stop) -> int:
    config, resolved = stop.call(lambda: _resolve(options))
    if options.dry_run:
        from trainer.driver.plan import plan, render

        described = plan(resolved)
        print(json_text(described, indent=2) if options.json else render(described))
        return 0
    return stop.call(_import_driver)(config, stop, options.from_scratch)


def _resolve(options: argparse.Namespace) -> "tuple[RunConfig, Resolved]":
    """The configuration of the command, and what is stored of its run."""
    from trainer.config.load import load_config
    from trainer.driver.plan import check
    from trainer.registry.lookup import package_digest

    sets = [*options.sets, *kept(options)]
    config = load_config(options.config, sets, package_digest)
    return config, check(config)


def _import_driver() -> "Callable[[RunConfig, Stop, bool], int]":
    from trainer.driver.run import execute

    return execute


if __name__ == "__main__":
    exit_process(main())
