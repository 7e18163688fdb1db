"""The terminal output of `make run`: one line per phase, and the tables at the end."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.stack import Stack

MLFLOW_HINT = (
    "  MLflow               `make up` shows this run's page again; `make run KEEP=1` leaves everything running"
)


@contextmanager
def phase(activity: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, shows `activity` while the block runs; then prints a line with the outcome and the time taken.

    The block calls the function it is given with the text of the outcome.
    """
    begin = time.monotonic()
    erase = "\r\x1b[K" if sys.stdout.isatty() else ""
    if erase:
        print(f"… {activity}", end="", flush=True)
    outcome: list[str] = []
    try:
        yield outcome.append
    finally:
        print(erase, end="", flush=True)
    for line in outcome:
        print(f"✓ {line} ({time.monotonic() - begin:.1f} s)", flush=True)


def unforeseen(error: Exception) -> str:
    """An error that nobody foresaw, in one line that names the file with all of it."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        number, name = tempfile.mkstemp(prefix="dualview-", suffix=".log")
        with os.fdopen(number, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # a full disk, say
        return line
    return f"{line}  (all of it: {name})"


def format_summary(summary: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A table of results: the Frechet distance with its references, the bound and its terms, speed, model, files."""
    references = {"held-out images": "heldout", "fitted Gaussian": "gaussian", "noise": "noise"}
    terms = ("prior", "diffusion", "reconstruction")
    has_classifier = "frechet_classifier" in summary  # without labels there is no classifier to measure with
    rows = {
        **({"frechet_classifier": _number(summary["frechet_classifier"])} if has_classifier else {}),
        **{
            f"  {name}": _number(summary[f"frechet_classifier_{key}"])
            for name, key in references.items()
            if has_classifier
        },
        "vlb_bpd": f"{_number(summary['vlb_bpd'])} bits/dim",
        **{f"  {term}": _number(summary[f"vlb_{term}_bpd"]) for term in terms},
        "images per second": _number(summary["images_per_second"]),
        "model": f"{summary['model_uri']} (package {summary['package_sha256'][:12]})",
        "written": " ".join(str(file) for file in files),
    }
    return _table(rows)


def format_addresses(stack: Stack) -> str:
    """A table of the addresses of a running stack, and how to stop it."""
    rows = {
        "MLflow": stack.tracking_uri,
        "Ray": f"{stack.dashboard} (asks for a token: var/ray_token)",
        "sampler": f"{stack.sampler} (after `make run`)",
        "in a shell": "source var/stack.env",
        "to stop": "make stop",
    }
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<20} {value}" for name, value in rows.items())


def _number(value: float) -> str:
    return f"{value:.4g}"
