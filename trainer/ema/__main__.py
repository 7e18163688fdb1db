"""`python -m trainer.ema`: build the model package of another EMA width after training.

    RUN's snapshots of two tracks -> weights (diffusion/ema.py) -> a model package for each width

torch is imported only when work begins, so that --help answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.command import printable, run_command
from trainer.config.run_config import RunConfig
from trainer.config.training import EmaConfig
from trainer.errors import InputError
from trainer.files import check_output
from trainer.run.identity import class_names, read_run
from trainer.run.paths import RunPaths

if TYPE_CHECKING:
    from trainer.ema.snapshots import EmaSources

TABLE_WIDTHS = (0.05, 0.06, 0.075, 0.1, 0.125, 0.15)
MAX_RECONSTRUCTION_ERROR = 0.05
"""Largest relative L2 error of a package's EMA profile; with the default tracks, 8 snapshots stay below it."""
EXAMPLES = """\
examples:
  python -m trainer.ema ~/dualview/digits/digits-13b6668d
  python -m trainer.ema ~/dualview/digits/digits-13b6668d --sigma-rel 0.075 --out narrow
  python -m trainer.ema ~/dualview/digits/digits-13b6668d --sigma-rel 0.06 --sigma-rel 0.15 --out widths
  python -m sampler generate narrow -n 64 --out grid.png

RUN is a run's folder, which `python -m trainer --dry-run` shows. sigma_rel is the width of the EMA as a fraction of the
training so far. The error is the relative L2 distance between the EMA profile rebuilt from snapshots and the exact one.

exit codes: 0 done; 2 bad input; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.ema",
        description="Build the model package of another EMA width from a run's snapshots, or list the possible widths.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    result.add_argument(
        "--sigma-rel",
        type=float,
        metavar="WIDTH",
        action="append",
        help="EMA width, such as 0.075; repeat for several, each written to FOLDER/sigma-WIDTH; default: print a table",
    )
    result.add_argument("--step", type=int, help="step of a checkpoint or snapshot; default: the newest checkpoint")
    result.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new or empty folder for the package; needs --sigma-rel"
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _average(options), InputError)


def _average(options: argparse.Namespace) -> int:
    if (options.sigma_rel is None) != (options.out is None):
        raise InputError("--sigma-rel and --out go together; allowed: both, or neither for a table")
    config, paths = read_run(options.run)
    sources = find(config, paths, options.step)
    for reason in sources.refused:
        print(f"warning: not used: {printable(reason)}")
    if options.sigma_rel is None:
        show(sources)
    else:
        make(config, sources, list(dict.fromkeys(options.sigma_rel)), options.out, class_names(paths))
    return 0


def find(config: RunConfig, paths: RunPaths, step: int | None) -> "EmaSources":
    """The checkpoints that an average at a step can be built from; by default at the newest checkpoint's step.

    Raises:
        InputError: there is no good checkpoint or snapshot at that step.
    """
    from trainer.checkpoint.reader import Checkpoint, find_latest
    from trainer.ema.snapshots import ema_sources
    from trainer.run.manifest import CheckpointError, complete_steps, step_folder

    if step is None:
        latest = find_latest(paths.checkpoints)
        if latest.folder is None:
            why = "; ".join(map(str, latest.refused.values())) or "none was written"
            raise InputError(f"RUN = {paths.root}: no good checkpoint: {why}; allowed: a run with a checkpoint")
        sources = ema_sources(paths.ema, config.ema, Checkpoint(latest.folder))
        return replace(sources, refused=[*map(str, latest.refused.values()), *sources.refused])
    folders = {step: folder for folder in (paths.ema, paths.checkpoints) for step in complete_steps(folder)}
    if step not in folders:
        known = ", ".join(map(str, sorted(folders))) or "none"
        raise InputError(f"--step {step}: no checkpoint and no snapshot; allowed: {known}")
    try:
        target = Checkpoint(step_folder(folders[step], step))
        target.verify()
    except CheckpointError as error:
        raise InputError(f"--step {step}: {error}") from None
    return ema_sources(paths.ema, config.ema, target)


def show(sources: "EmaSources") -> None:
    """Print a table of EMA widths with the error of each."""
    from rich.table import Table

    from diffusion.terminal import PlainConsole

    steps = [checkpoint.step for checkpoint in sources.checkpoints]
    table = Table(title=f"step {sources.step}: two tracks at {len(steps)} steps, {steps[0]} to {steps[-1]}")
    for column in ("sigma_rel", "error"):
        table.add_column(column, justify="right")
    for width in sorted({*TABLE_WIDTHS, *sources.sigma_rels}):
        error = sources.error(width)
        table.add_row(f"{width:g}", "a track" if width in sources.sigma_rels else f"{error:.2%}")
    PlainConsole().print(table)


def make(config: RunConfig, sources: "EmaSources", widths: list[float], out: Path, names: Sequence[str] = ()) -> None:
    """Write a package for each width: in `out` itself for a single width, else in a folder below it per width.

    Raises:
        InputError: a width cannot be built, or the folder cannot be written to; nothing was written.
    """
    from trainer.ema.export import write_package

    for width in widths:
        check_width(config.ema, sources, width)
    folders = [out] if len(widths) == 1 else [out / f"sigma-{width}" for width in widths]
    check_output(out, "--out", own=())
    for width, folder in zip(widths, folders, strict=True):
        last = sources.checkpoints[-1]
        trained, fingerprint = sources.tensors(width), last.dataset_fingerprint
        digest = write_package(folder, config, last.image_shape, trained, fingerprint, names)
        quality = f"{len(sources.checkpoints)} snapshots, error {sources.error(width):.2%}"
        print(f"{folder}: step {sources.step}, sigma_rel {width:g}, {quality}, package {digest[:12]}")
        print(f"  python -m sampler generate {folder} -n 64 --out grid.png")


def check_width(settings: EmaConfig, sources: "EmaSources", width: float) -> None:
    """Refuse a width that cannot be built from the snapshots.

    Raises:
        InputError: it lies outside the span of the tracks, or there are too few snapshots.
    """
    try:
        EmaConfig(sigma_rel=width, tracks=settings.tracks, snapshot_every=settings.snapshot_every)
    except ValueError:
        low, high = settings.span
        raise InputError(f"--sigma-rel {width:g}: allowed: {low:g} to {high:g}, which the tracks span") from None
    if (error := sources.error(width)) > MAX_RECONSTRUCTION_ERROR:
        raise InputError(
            f"--sigma-rel {width:g}: error {error:.1%} with the tracks of {len(sources.checkpoints)} steps up to "
            f"{sources.step}; allowed: {MAX_RECONSTRUCTION_ERROR:.0%}; another width, or a later step with more "
            "snapshots"
        )


if __name__ == "__main__":
    sys.exit(main())
