"""`python -m trainer.registry`: list, promote and roll back the versions of a registered model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from diffusion.command import printable, run_command
from diffusion.json_text import json_text
from trainer.config.load import default_storage, tracking_uri
from trainer.errors import InputError

EXAMPLES = """\
examples:
  python -m trainer.registry list digits
  python -m trainer.registry promote digits 3
  python -m trainer.registry promote digits 3 --force --reason "the samples are better, see the report"
  python -m trainer.registry rollback digits --reason "complaints about sevens"

A new version is the `challenger`. It becomes `champion` if its package is intact, its outputs are finite, its three
likelihoods agree within run.gate.likelihood_gap, and it beats the champion by run.gate.metric beyond the error bars.
Every decision is recorded in the version's tags, with its reason.

exit codes: 0 done; 2 bad input; 1 the gate refused, or anything else
"""
LISTED_METRICS = ("vlb_bpd", "nll_bpd", "frechet_classifier", "fid")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.registry",
        description="List, promote and roll back the versions of a registered model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="list | promote | rollback | sign")
    several = (
        ("list", "list the versions, their scores and the gate's decisions"),
        ("promote", "give a version the alias, if it passes the gate"),
        ("rollback", "give the alias back to the version that had it before"),
        ("sign", "sign a version's package, for samplers that ask for it"),
    )
    for name, text in several:
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("name", metavar="NAME", help="name of the registered model")
        if name in ("promote", "sign"):
            command.add_argument("version", metavar="VERSION", help="number of the version")
        if name == "sign":
            command.add_argument(
                "--key", type=Path, required=True, help="your key (`python -m diffusion.sign keys KEY`)"
            )
            command.add_argument(
                "--package-sha256",
                metavar="HEX",
                help="sign this package or none: package_sha256 in its manifest.json",
            )
        if name == "promote":
            command.add_argument(
                "--force", action="store_true", help="promote even if the gate refuses; recorded with the decision"
            )
        if name in ("promote", "rollback"):
            command.add_argument("--reason", default="", metavar="TEXT", help="reason to record with the decision")
        command.add_argument("--alias", default="champion", help="the alias that is served (default champion)")
        command.add_argument(
            "--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or the local database"
        )
        if name == "list":
            command.add_argument("--json", action="store_true", help="print as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _act(options), InputError)


def _act(options: argparse.Namespace) -> int:
    from trainer.registry import models as registry

    storage = default_storage()
    uri = tracking_uri(options.tracking_uri, storage)
    if options.command == "list":
        return _list(registry.open_versions(options.name, uri), options.json)
    if options.command == "rollback":
        before, present = registry.rollback(options.name, options.alias, uri, options.reason or "by hand")
        print(f"{options.name} version {before} is {options.alias} again, instead of version {present}")
        return 0
    if options.command == "sign":
        version = f"{options.name} version {options.version}"
        digest = registry.sign_version(
            options.name, options.version, uri, storage / "fetched", options.key, options.package_sha256,
            lambda served: print(f"{version}: the registry serves package {served}", flush=True),
        )  # fmt: skip
        print(f"{version}: package {digest} is signed")
        return 0
    decision = registry.promote(
        options.name, options.version, options.alias, uri, storage / "fetched", options.force, options.reason
    )
    outcome = options.alias if decision.promoted else "not promoted"
    print(f"{options.name} version {options.version}: {outcome}: {printable(decision.reason)}")
    return 0 if decision.promoted else 1


def _list(versions: list[Any], as_json: bool) -> int:
    if as_json:
        print(json_text([vars(each) for each in versions], indent=2))
        return 0
    from rich.table import Table

    from diffusion.terminal import PlainConsole

    shown = [name for name in LISTED_METRICS if any(name in each.metrics for each in versions)]
    table = Table(box=None, pad_edge=False)
    for heading in ("version", "alias", *shown, "decided", "reason"):
        table.add_column(heading, overflow="fold")
    for each in versions:
        scores = [_score(each.metrics, name) for name in shown]
        decided = f"{each.decision} {each.time[:10]}".strip()
        said = "; ".join(text for text in (each.reason, each.problem) if text)
        table.add_row(each.number, ", ".join(each.aliases), *scores, decided, said)
    PlainConsole(soft_wrap=False, width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _score(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    error = metrics.get(f"{name}_se")
    return f"{metrics[name]:.4g}" + ("" if error is None else f" +- {error:.2g}")


if __name__ == "__main__":
    sys.exit(main())
