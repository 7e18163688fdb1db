"""`python -m tuning`: train the same model with several settings of the method, and compare the scores.

torch, Ray and MLflow are imported only when needed, so that --help and --dry-run are fast.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from diffusion.command import run_command
from diffusion.json_text import json_text
from trainer.errors import InputError
from trainer.runtime.command import add_keep, kept

EXAMPLES = """\
examples:
  python -m tuning run --config configs/sweep-digits.yaml
  python -m tuning run --config configs/sweep-digits.yaml --set training.steps=1500     # change every trial
  python -m tuning run --config configs/sweep-digits.yaml --dry-run                     # list the trials, run nothing
  python -m tuning report digits-schedules --out heatmap.png
  python -m tuning screen ~/dualview/digits/mine/results --out screen.png               # schedules without training
  python -m tuning screen scores/denoising.json --schedule '{kind: sigmoid, beta_end: 0.01}' --steps 500
  ray job submit --working-dir . -- python -m tuning run --config configs/sweep-digits.yaml

Run the same command again to run only the trials that are not done. The sweep is kept in <run.storage>/sweeps/<name>,
and its trials are ordinary runs in <run.storage>; --dry-run prints the folder.

exit codes: 0 done; 2 bad input, before any worker starts; 1 anything else, including a failed trial
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tuning",
        description="Sweep over schedules, weightings and other settings of the method, on the cluster at RAY_ADDRESS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="run | report | screen")
    run = commands.add_parser("run", help="run the trials of a sweep file that are not done, then report the scores")
    run.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML sweep file, such as configs/sweep-digits.yaml"
    )
    run.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="PATH=VALUE",
        help="change a setting of every trial, e.g. training.steps=1500; repeatable",
    )  # fmt: skip
    run.add_argument(
        "--from-scratch",
        action="store_true",
        help="begin trials at step 0 of which there are damaged checkpoints only; all others go on as they would",
    )
    add_keep(run, "each trial")
    run.add_argument("--dry-run", action="store_true", help="print the trials that would run, and exit")
    run.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    report = commands.add_parser("report", help="show the scores of a sweep as a table and a heat map")
    report.add_argument("sweep", metavar="SWEEP", help="name of the sweep, as in its file")
    report.add_argument(
        "--storage",
        type=Path,
        metavar="DIR",
        help="folder that holds the runs (default: DUALVIEW_STORAGE, else ~/dualview)",
    )
    report.add_argument("--out", type=Path, metavar="FILE.png", help="write the heat map to this file")
    report.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    _add_screen(commands)
    return result


def _add_screen(commands: Any) -> None:  # noqa: ANN401 - argparse's subparsers
    screen = commands.add_parser(
        "screen",
        help="predict bounds under other schedules from a denoising curve, without training",
        description="Computes, from a network's denoising error against log-SNR, the two variational bounds that "
        "the same network would have under other schedules. This ranks schedules by the discretisation gap of "
        "their chains, within the measured range of log-SNR. It predicts neither the result of training with a "
        "schedule nor sample quality.",
    )
    add = screen.add_argument
    add("curve", type=Path, metavar="CURVE", help="denoising.json of an evaluation that had the metric denoising")
    add(
        "--schedule",
        action="append",
        metavar="YAML",
        help="a kind of schedule, or a mapping with its settings; repeatable (default: all kinds)",
    )
    add(
        "--process",
        action="append",
        choices=("ddpm", "vp"),
        help="ddpm for chains, vp for continuous time; repeatable (default ddpm)",
    )
    add(
        "--steps",
        action="append",
        type=int,
        metavar="T",
        help="steps of the chain; repeatable (default 100, 250, 1000)",
    )
    add(
        "--reverse-variance",
        choices=("beta", "beta_tilde"),
        default="beta",
        help="variance of the reverse steps (default beta)",
    )
    add("--out", type=Path, metavar="FILE.png", help="plot the curve and the gaps to this file")
    add("--json", action="store_true", help="print JSON")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    if options.command == "run" and options.json and not options.dry_run:
        parser().error("--json goes with --dry-run")
    return run_command(
        lambda: {"run": _run, "report": _report, "screen": _screen}[options.command](options), InputError
    )


def _run(options: argparse.Namespace) -> int:
    from trainer.registry.lookup import package_digest
    from tuning.space import read_sweep
    from tuning.sweep import Sweep

    sets = [*options.sets, *kept(options)]
    sweep = Sweep.of(*read_sweep(options.config, sets, package_digest))
    states = sweep.states()
    if options.dry_run:
        from tuning.plan import plan, render

        described = plan(sweep, states)
        print(json_text(described, indent=2) if options.json else render(described, [t.label for t in sweep.trials]))
        return 0
    from tuning.driver import execute

    return execute(sweep, options.from_scratch)


def _report(options: argparse.Namespace) -> int:
    from diffusion.terminal import PlainConsole
    from trainer.config.load import resolve
    from trainer.config.run_config import RunConfig
    from tuning import report
    from tuning.sweep import Sweep

    storage = options.storage or Path(str(resolve(RunConfig()).run.storage))
    sweep = Sweep.load(storage.absolute(), options.sweep)
    if options.out is not None and options.out.suffix != ".png":
        raise InputError(f"--out {options.out}: allowed: a file that ends in .png")
    try:
        written = report.draw(sweep, options.out) if options.out else None
    except OSError as error:
        raise InputError(f"--out {options.out}: {error.strerror}; allowed: a writable file") from None
    if options.json:
        print(json_text(report.report(sweep), indent=2))
        return 0
    console = PlainConsole(soft_wrap=True)
    report.show(sweep, console)
    if options.out:
        console.print(f"heat map: {written}" if written else "heat map: no scores to draw", markup=False)
    return 0


def _screen(options: argparse.Namespace) -> int:
    from diffusion.terminal import PlainConsole
    from tuning import screening

    if options.out is not None and options.out.suffix != ".png":
        raise InputError(f"--out {options.out}: allowed: a file that ends in .png")
    curve = screening.read_curve(options.curve)
    processes = screening.candidate_processes(
        curve, options.process, options.schedule, options.steps, options.reverse_variance
    )
    candidates = screening.screen_all(curve, processes)
    if options.out:
        try:
            screening.draw(curve, candidates, options.out)
        except OSError as error:
            raise InputError(f"--out {options.out}: {error.strerror}; allowed: a writable file") from None
    if options.json:
        print(json_text(screening.as_json(candidates), indent=2))
        return 0
    screening.show(curve, candidates, PlainConsole(width=None if sys.stdout.isatty() else 160))
    if options.out:
        print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
