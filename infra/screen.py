"""What `make run` writes on the screen: one line per phase, and the closing table."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.stack import Stack

LATER = "  MLflow               `make up` shows this run's page again; `make run KEEP=1` leaves everything up"


@contextmanager
def phase(doing: str) -> Iterator[Callable[[str], None]]:
    """Shows `doing` while the block runs, on a terminal; the block ends by calling what it is given with what was done.

    That line replaces the first one and carries the time taken.
    """
    begin = time.monotonic()
    erase = "\r\x1b[K" if sys.stdout.isatty() else ""
    if erase:
        print(f"… {doing}", end="", flush=True)
    outcome: list[str] = []
    try:
        yield outcome.append
    finally:
        print(erase, end="", flush=True)
    for line in outcome:
        print(f"✓ {line} ({time.monotonic() - begin:.1f} s)", flush=True)


def closing(summary: Mapping[str, Any], files: Sequence[Path]) -> str:
    """The closing table: the Frechet distance on its scale, the bound and its terms, speed, model, files."""
    scale = {"held-out images": "heldout", "fitted Gaussian": "gaussian", "noise": "noise"}
    terms = ("prior", "diffusion", "reconstruction")
    labelled = "frechet_classifier" in summary  # without labels there is no classifier to measure with
    rows = {
        **({"frechet_classifier": _number(summary["frechet_classifier"])} if labelled else {}),
        **{f"  {name}": _number(summary[f"frechet_classifier_{key}"]) for name, key in scale.items() if labelled},
        "vlb_bpd": f"{_number(summary['vlb_bpd'])} bits/dim",
        **{f"  {term}": _number(summary[f"vlb_{term}_bpd"]) for term in terms},
        "images per second": _number(summary["images_per_second"]),
        "model": f"{summary['model_uri']} (package {summary['package_sha256'][:12]})",
        "written": " ".join(str(file) for file in files),
    }
    return _table(rows)


def where(stack: Stack) -> str:
    """Where the parts of a stack that stays up are, and how to stop it."""
    rows = {
        "MLflow": stack.tracking_uri,
        "Ray": f"{stack.dashboard} (asks for the token in var/ray_token)",
        "sampler": f"{stack.sampler} (after `make run`)",
        "in a shell": "source var/stack.env",
        "to stop": "make stop",
    }
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<20} {value}" for name, value in rows.items())


def _number(value: float) -> str:
    return f"{value:.4g}"
