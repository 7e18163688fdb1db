"""`python -m trainer`: train, evaluate and register one diffusion model on a Ray cluster.

torch, Ray and MLflow are imported only when work begins, so that --help and --dry-run answer at once.
"""

import argparse
import json
import sys
from pathlib import Path

from trainer.config.load import load_config
from trainer.errors import InputError

EXAMPLES = """\
examples:
  python -m trainer --config configs/digits.yaml
  python -m trainer --config configs/digits.yaml --set objective.prediction=score --set optim.lr=5e-4
  python -m trainer --config configs/digits.yaml --dry-run          # what would run; starts nothing
  ray job submit --working-dir . -- python -m trainer --config configs/digits.yaml

Running the same command again resumes from the newest complete checkpoint. Results are in
<run.storage>/<run.experiment>/<run.name>/results; --dry-run shows the folder.

On SIGTERM, or when a heartbeat to DUALVIEW_QUEUE_URL is answered with "preempt", the run writes a checkpoint after the
current step and exits.

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
    result.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    result.add_argument("--json", action="store_true", help="with --dry-run: as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    if options.json and not options.dry_run:
        parser().error("--json goes with --dry-run")
    try:
        config = load_config(options.config, options.sets)
        from trainer.driver.plan import check, plan, render

        resolved = check(config)
        if options.dry_run:
            described = plan(resolved)
            print(json.dumps(described, indent=2) if options.json else render(described))
            return 0
        from trainer.driver.run import execute

        return execute(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
