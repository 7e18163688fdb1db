"""`python -m diffusion.verify`: check the claims of docs/theory.md on this installation, in float64, in seconds.

Prints a line for each measured number: what it is, measured, expected, tolerance, and whether it passed. `--fault NAME`
applies a deliberate fault first (a mutant of one function), to show that the checks can fail.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusion.command import run_command
from diffusion.json_text import json_text

EXAMPLES = """\
examples:
  python -m diffusion.verify
  python -m diffusion.verify --quick --json report.json
  python -m diffusion.verify --list-faults
  python -m diffusion.verify --fault beta-for-beta-tilde     # must fail

exit codes: 0 all passed; 1 a check failed; 2 bad input
"""


class VerifyError(ValueError):
    """Bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m diffusion.verify",
        description="Measure what the theory states, on data with exact answers, and compare.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--quick", action="store_true", help="smaller sizes and fewer draws")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the measured numbers there, too")
    result.add_argument("--fault", metavar="NAME", help="apply a deliberate fault")
    result.add_argument("--list-faults", action="store_true", help="list the faults, and stop")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None reads sys.argv.

    Returns:
        The exit code: 0 all passed, 1 a check failed, 2 bad input.
    """
    options = parser().parse_args(arguments)
    return run_command(lambda: _verify(options), VerifyError)


def _verify(options: argparse.Namespace) -> int:
    from diffusion.verify.mutants import MUTANTS

    if options.list_faults:
        width = max(map(len, MUTANTS))
        print("\n".join(f"{name:<{width}}  {mutation.text}" for name, mutation in MUTANTS.items()))
        return 0
    if options.fault is not None and options.fault not in MUTANTS:
        raise VerifyError(f"--fault {options.fault}: allowed: {', '.join(MUTANTS)}")
    begin = time.monotonic()
    with MUTANTS[options.fault].applied() if options.fault else nullcontext():
        rows = measure(options.quick)
    failed = sum(not row["passed"] for row in rows)
    if options.json is not None:
        try:
            options.json.write_text(json_text({"fault": options.fault, "checks": rows}, indent=2) + "\n")
        except OSError as error:
            raise VerifyError(f"--json {options.json}: {error.strerror}") from None
    print(f"{len(rows) - failed} of {len(rows)} checks passed in {time.monotonic() - begin:.1f} s")
    return 1 if failed else 0


def measure(quick: bool) -> list[dict[str, Any]]:
    """Run the checks of all claims, printing each; a check that raises has failed.

    Args:
        quick: smaller sizes and fewer draws.

    Returns:
        One dictionary per check, as in the JSON report.
    """
    from diffusion.verify.claims import CLAIMS

    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        print(f"{claim.number:>2}  {claim.text}")
        try:
            for check in claim.checks(quick):
                measured = check.measured if math.isfinite(check.measured) else None  # JSON has no NaN
                row = {**asdict(check), "measured": measured, "passed": check.passed}
                rows.append({"statement": claim.number, **row})
                print(
                    f"    {'ok  ' if check.passed else 'FAIL'} {check.what:<68} {check.measured:>11.5g}"
                    f"  expected {check.expected:g} ± {check.tolerance:.2g}"
                )
        except (ValueError, ArithmeticError, RuntimeError) as error:
            none = dict.fromkeys(("measured", "expected", "tolerance"))
            rows.append({"statement": claim.number, "what": str(error), **none, "passed": False})
            print(f"    FAIL {error}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
