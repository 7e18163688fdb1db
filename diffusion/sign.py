"""`python -m diffusion.sign`: keys, and signatures of package folders."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffusion.command import run_command

EXAMPLES = """\
examples:
  python -m diffusion.sign keys team.key                    # writes team.key, which you keep, and team.key.pub
  python -m diffusion.sign package team.key path/to/package
  python -m trainer.registry sign digits 3 --key team.key   # a registered version
  python -m sampler serve --model digits@champion --signed-by team.key.pub

exit codes: 0 done; 2 bad input
"""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m diffusion.sign",
        description="Sign packages, so that samplers can tell who made them (ed25519).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True)
    command = commands.add_parser("keys", help="make a private key, and the public one beside it")
    command.add_argument("key", type=Path, metavar="KEY")
    command = commands.add_parser("package", help="sign a package's folder")
    command.add_argument("key", type=Path, metavar="KEY")
    command.add_argument("package", type=Path, metavar="PACKAGE")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _act(options), (OSError, ValueError))


def _act(options: argparse.Namespace) -> int:
    from diffusion.signature import make_keys, sign_package

    if options.command == "keys":
        print(f"{options.key}: keep it; {make_keys(options.key)}: for those who sample")
    else:
        print(f"{options.package}: package {sign_package(options.package, options.key)} is signed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
