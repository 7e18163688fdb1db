"""`python -m trainer.ema`: the EMA of another width, after training.

    RUN's snapshots of two tracks -> weights (diffusion/ema.py) -> a model package

Imports of torch wait until work begins, so that --help answers at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import EmaConfig, RunConfig
from trainer.paths import RunPaths
from trainer.settings import InputError
from trainer.state import read_json

if TYPE_CHECKING:
    from trainer.snapshots import Averages

SHOWN = (0.05, 0.06, 0.075, 0.1, 0.125, 0.15)
EXAMPLES = """\
examples:
  python -m trainer.ema ~/dualview/digits/digits-13b6668d
  python -m trainer.ema ~/dualview/digits/digits-13b6668d --sigma-rel 0.075 --out narrow
  python -m sampler generate narrow -n 64 --out grid.png

RUN is a run's folder; --dry-run of the trainer shows it. sigma_rel is the width of the average relative to the training
so far. The error is the relative L2 distance of the profile that is made of snapshots from the one that is wanted.

exit codes: 0 done; 2 bad input; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.ema",
        description="Make the model package of another EMA width from a run's snapshots, or list what could be made.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    result.add_argument("--sigma-rel", type=float, metavar="WIDTH", help="such as 0.075; without it: a table")
    result.add_argument("--step", type=int, help="of a checkpoint or a snapshot; default: the newest checkpoint")
    result.add_argument("--out", type=Path, metavar="FOLDER", help="for the package; goes with --sigma-rel")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        if (options.sigma_rel is None) != (options.out is None):
            raise InputError("--sigma-rel and --out go together; allowed: both, or neither for a table")
        config, paths = read_run(options.run)
        found = find(config, paths, options.step)
        for reason in found.refused:
            print(f"warning: snapshot left out: {reason}")
        if options.sigma_rel is None:
            show(found)
        else:
            make(config, found, options.sigma_rel, options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_run(folder: Path) -> tuple[RunConfig, RunPaths]:
    """The configuration and the files of a run.

    Raises:
        InputError: the folder is not that of a run.
    """
    paths = RunPaths(folder)
    try:
        return RunConfig.model_validate(read_json(paths.identity)["config"], strict=False), paths
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"RUN = {folder}: not the folder of a run of this version: {reason}") from None


def find(config: RunConfig, paths: RunPaths, step: int | None) -> "Averages":
    """What there is at a step.

    Raises:
        InputError: nothing.
    """
    from trainer.checkpoint import Checkpoint, CheckpointError, complete_steps, find_latest, step_folder
    from trainer.snapshots import averages

    if step is None:
        latest = find_latest(paths.checkpoints).folder
        if latest is None:
            raise InputError(f"RUN = {paths.root}: no good checkpoint; allowed: a run that has one")
        return averages(paths.ema, config.ema, Checkpoint(latest))
    there = {step: folder for folder in (paths.ema, paths.checkpoints) for step in complete_steps(folder)}
    if step not in there:
        known = ", ".join(map(str, sorted(there))) or "none"
        raise InputError(f"--step {step}: no checkpoint and no snapshot; allowed: {known}")
    try:
        target = Checkpoint(step_folder(there[step], step))
        target.verify()
    except CheckpointError as error:
        raise InputError(f"--step {step}: {error}") from None
    return averages(paths.ema, config.ema, target)


def show(found: "Averages") -> None:
    """A table of the widths that could be made."""
    from rich.console import Console
    from rich.table import Table

    steps = [source.step for source in found.sources]
    table = Table(title=f"step {found.step}: two tracks at {len(steps)} steps, {steps[0]} to {steps[-1]}")
    for column in ("sigma_rel", "error"):
        table.add_column(column, justify="right")
    for width in sorted({*SHOWN, *found.sigma_rels}):
        error = found.error(width)
        table.add_row(f"{width:g}", "a track" if width in found.sigma_rels else f"{error:.2%}")
    Console().print(table)


def make(config: RunConfig, found: "Averages", sigma_rel: float, out: Path) -> None:
    """Write the package of one width.

    Raises:
        InputError: a width that the tracks do not span.
    """
    from trainer.packaging import write_package

    try:
        EmaConfig(sigma_rel=sigma_rel, tracks=config.ema.tracks, snapshot_every=config.ema.snapshot_every)
    except ValueError:
        low, high = config.ema.span
        raise InputError(f"--sigma-rel {sigma_rel}: allowed: {low:g} to {high:g}, which the tracks span") from None
    digest = write_package(out, config, found.sources[-1].image_shape, found.tensors(sigma_rel))
    print(
        f"{out}: step {found.step}, sigma_rel {sigma_rel:g}, error {found.error(sigma_rel):.2%}, package {digest[:12]}"
    )
    print(f"  python -m sampler generate {out} -n 64 --out grid.png")


if __name__ == "__main__":
    sys.exit(main())
