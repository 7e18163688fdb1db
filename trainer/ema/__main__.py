"""`python -m trainer.ema`: the EMA of another width, after training.

    RUN's snapshots of two tracks -> weights (diffusion/ema.py) -> a model package for each width

Imports of torch wait until work begins, so that --help answers at once.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.run_config import RunConfig
from trainer.config.training import EmaConfig
from trainer.errors import InputError
from trainer.run.identity import read_run
from trainer.run.paths import RunPaths

if TYPE_CHECKING:
    from trainer.ema.snapshots import Averages

SHOWN = (0.05, 0.06, 0.075, 0.1, 0.125, 0.15)
WORST = 0.05
"""The largest error of a package: beyond, its width is another than it says. With the default tracks 8 snapshots do."""
EXAMPLES = """\
examples:
  python -m trainer.ema ~/dualview/digits/digits-13b6668d
  python -m trainer.ema ~/dualview/digits/digits-13b6668d --sigma-rel 0.075 --out narrow
  python -m trainer.ema ~/dualview/digits/digits-13b6668d --sigma-rel 0.06 --sigma-rel 0.15 --out widths
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
    result.add_argument(
        "--sigma-rel",
        type=float,
        metavar="WIDTH",
        action="append",
        help="such as 0.075; repeat for more, in FOLDER/sigma-WIDTH each; without it: a table",
    )
    result.add_argument("--step", type=int, help="of a checkpoint or a snapshot; default: the newest checkpoint")
    result.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new or empty, for the package; goes with --sigma-rel"
    )
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
            print(f"warning: left out: {reason}")
        if options.sigma_rel is None:
            show(found)
        else:
            make(config, found, list(dict.fromkeys(options.sigma_rel)), options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find(config: RunConfig, paths: RunPaths, step: int | None) -> "Averages":
    """What there is at a step.

    Raises:
        InputError: nothing.
    """
    from trainer.checkpoint.manifest import CheckpointError, complete_steps, step_folder
    from trainer.checkpoint.reader import Checkpoint, find_latest
    from trainer.ema.snapshots import averages

    if step is None:
        latest = find_latest(paths.checkpoints)
        if latest.folder is None:
            why = "; ".join(latest.refused) or "none was written"
            raise InputError(f"RUN = {paths.root}: no good checkpoint: {why}; allowed: a run that has one")
        found = averages(paths.ema, config.ema, Checkpoint(latest.folder))
        return replace(found, refused=[*latest.refused, *found.refused])
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


def make(config: RunConfig, found: "Averages", widths: list[float], out: Path) -> None:
    """Write a package for each width, in `out` itself where there is one.

    Raises:
        InputError: a width that cannot be made, or a folder that cannot be written to; nothing was written.
    """
    from trainer.ema.export import write_package

    for width in widths:
        check_width(config.ema, found, width)
    folders = [out] if len(widths) == 1 else [out / f"sigma-{width}" for width in widths]
    make_empty(out)
    for width, folder in zip(widths, folders, strict=True):
        digest = write_package(folder, config, found.sources[-1].image_shape, found.tensors(width))
        made_of = f"{len(found.sources)} snapshots, error {found.error(width):.2%}"
        print(f"{folder}: step {found.step}, sigma_rel {width:g}, {made_of}, package {digest[:12]}")
        print(f"  python -m sampler generate {folder} -n 64 --out grid.png")


def check_width(settings: EmaConfig, found: "Averages", width: float) -> None:
    """Refuse a width that the snapshots do not give.

    Raises:
        InputError: the tracks do not span it, or there are too few snapshots.
    """
    try:
        EmaConfig(sigma_rel=width, tracks=settings.tracks, snapshot_every=settings.snapshot_every)
    except ValueError:
        low, high = settings.span
        raise InputError(f"--sigma-rel {width:g}: allowed: {low:g} to {high:g}, which the tracks span") from None
    if (error := found.error(width)) > WORST:
        raise InputError(
            f"--sigma-rel {width:g}: error {error:.1%} with the tracks of {len(found.sources)} steps up to "
            f"{found.step}; allowed: {WORST:.0%}; another width, or a later step with more snapshots"
        )


def make_empty(out: Path) -> None:
    """Make a new folder, or take an empty one.

    Raises:
        InputError: there is something, or no folder can be made there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"--out {out}: exists; allowed: a new or an empty folder")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; allowed: a new or an empty folder") from None


if __name__ == "__main__":
    sys.exit(main())
