"""`python -m trainer.compare`: is one model better than another, in both views and beyond the error bars?"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.command import run_command
from diffusion.json_text import json_text
from trainer.config.load import default_storage, tracking_uri
from trainer.errors import InputError
from trainer.evaluate.comparison import ComparedModel, ComparisonResult, compare, read
from trainer.run.summary import LIKELIHOODS

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """\
examples:
  python -m trainer.compare ~/dualview/digits/a ~/dualview/digits/b
  python -m trainer.compare a/evaluation b/evaluation c/evaluation --metrics vlb_bpd,frechet_classifier
  python -m trainer.compare digits@champion digits@3
  python -m trainer.compare 9c1f4e0d5b7a4d6f8e2b1c3a5d7f9e0b ~/dualview/digits/b --tracking-uri http://host:5000

RUN is a run's folder, the folder of an evaluation (or its evaluation.json), NAME@alias or NAME@version in the registry,
or the id of an MLflow run. All are compared with the first. Likelihoods of the same held-out images are compared image
by image, which tells smaller differences than their own errors do; scores of samples only with the same number of
samples and the same extractor.

A model is called better or worse if the difference exceeds --sigmas standard errors of the difference. At 2, one in
twenty comparisons of equal models is called different by chance: with many metrics or runs, expect some.

exit codes: 0 done; 2 bad input; 1 anything else
"""
FILE_TABLE_WIDTH = 160  # characters, where the output is no terminal
VIEWS = ("likelihood view", "sample view")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.compare",
        description="Say whether a model is better than another beyond the error bars.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("runs", metavar="RUN", nargs="+", help="two or more runs; all are compared with the first")
    add("--metrics", metavar="A,B", help="metrics to compare; default: all that were measured")
    add(
        "--sigmas", type=float, default=2.0, metavar="X", help="standard errors that a difference must have (default 2)"
    )
    add("--tracking-uri", metavar="URI", help="of MLflow runs; default: MLFLOW_TRACKING_URI, or the local database")
    add("--json", action="store_true", help="print the verdicts as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _compare(options), InputError)


def _compare(options: argparse.Namespace) -> int:
    if len(options.runs) < 2:
        raise InputError(f"RUN = {options.runs[0]}: one has nothing to be compared with; allowed: two or more")
    if not options.sigmas > 0:
        raise InputError(f"--sigmas = {options.sigmas}; allowed: above 0")
    with tempfile.TemporaryDirectory() as folder:
        models = [evaluated(run, options.tracking_uri, Path(folder)) for run in options.runs]
    verdicts = compared(models, options.metrics.split(",") if options.metrics else None, options.sigmas)
    if options.json:
        print(json_text(as_json(models, verdicts), indent=2))
        return 0
    from diffusion.terminal import PlainConsole

    show(models, verdicts, PlainConsole(width=None if sys.stdout.isatty() else FILE_TABLE_WIDTH))
    return 0


def evaluated(run: str, given_uri: str | None, scratch: Path) -> ComparedModel:
    """What was measured of a run.

    Raises:
        InputError: it is no run, or was not evaluated.
    """
    folder = Path(run)
    if (folder / "run.json").is_file():
        return read(folder / "results", folder.name)
    if folder.exists():
        return read(folder, folder.parent.name if folder.name in ("evaluation", "evaluation.json") else folder.name)
    uri = tracking_uri(given_uri, default_storage())
    name, at, which = run.rpartition("@")
    if at and name and "/" not in run:
        from trainer.registry.models import scores_of

        return scores_of(name, which, uri)
    if len(run) != 32 or not set(run) <= set("0123456789abcdef"):
        raise InputError(
            f"RUN = {run}: no such folder; allowed: a folder, NAME@champion, NAME@3 for version 3, or the id of an "
            "MLflow run, 32 hex digits"
        )
    from trainer.tracking.standalone import fetch_results

    try:
        name, results = fetch_results(uri, run, scratch)
    except OSError as error:
        raise InputError(f"RUN = {run}: {error}") from None
    return read(results, name)


Table = dict[str, list[ComparisonResult]]


def compared(models: Sequence[ComparedModel], metrics: Sequence[str] | None, sigmas: float) -> Table:
    """The verdicts of all but the first beside the first, by metric.

    Raises:
        InputError: nothing was measured, or not what is asked for.
    """
    first, *others = models
    known = list(dict.fromkeys(name for each in models for name in each.metrics))
    chosen = known if metrics is None else metrics
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise InputError(f"--metrics = {','.join(unknown)}: not measured; allowed: {', '.join(known) or 'nothing was'}")
    return {name: [compare(first, other, name, sigmas) for other in others] for name in chosen}


def views(verdicts: Table, index: int) -> dict[str, str]:
    """What the two views say of the model `index + 1` beside the first: better, worse, undecided or at odds."""
    summaries = dict[str, str]()
    for view in VIEWS:
        words = {
            each[index].word
            for name, each in verdicts.items()
            if (name in LIKELIHOODS) == (view == VIEWS[0]) and each[index].word != "not comparable"
        }
        if words:
            decided = words - {"undecided"}
            summaries[view] = "better by some, worse by others" if len(decided) > 1 else min(decided or {"undecided"})
    return summaries


def as_json(models: Sequence[ComparedModel], verdicts: Table) -> dict[str, Any]:
    """All of it, for programs."""
    first, *others = models
    return {
        "first": first.name,
        "others": [
            {
                "name": other.name,
                "views": views(verdicts, index),
                "metrics": {name: vars(each[index]) for name, each in verdicts.items()},
            }
            for index, other in enumerate(others)
        ],
    }


def show(models: Sequence[ComparedModel], verdicts: Table, console: "Console") -> None:
    """A table with a row a metric, and a line a model."""
    from rich.table import Table as RichTable

    table = RichTable(box=None, pad_edge=False)
    table.add_column("metric")
    for index, each in enumerate(models):
        table.add_column(each.name, overflow="fold")
        if index:
            table.add_column("beside the first", overflow="fold")
    for metric, row in verdicts.items():
        cells = [metric, _value(models[0], metric)]
        for other, verdict in zip(models[1:], row, strict=True):
            cells += [_value(other, metric), f"{verdict.word}: {verdict.reason}"]
        table.add_row(*cells)
    console.print(table)
    for index, other in enumerate(models[1:]):
        words = "; ".join(f"{view}: {word}" for view, word in views(verdicts, index).items())
        console.print(f"{other.name} beside {models[0].name}: {words or 'nothing to compare'}", markup=False)


def _value(each: ComparedModel, metric: str) -> str:
    score = each.score(metric)
    return "-" if score is None else str(score)


if __name__ == "__main__":
    sys.exit(main())
