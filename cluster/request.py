"""From a command line to a job: ask the command itself what it will need before queueing it.

`python -m trainer …` and `python -m tuning run …` answer `--dry-run --json` with their name and resource bundles, and
reject bad input, so a typo is found when the job is submitted rather than when it starts.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.spec import Bundle

SELF_DESCRIBING_COMMANDS = (["trainer"], ["tuning", "run"])
PYTHON_EXECUTABLE = re.compile(r"(.*/)?python[\d.]*")
INHERITED_VARIABLES = ("DUALVIEW_STORAGE", "MLFLOW_TRACKING_URI", "DUALVIEW_GIT_COMMIT")
DRY_RUN_TIMEOUT_S = 120


def describes_itself(command: Sequence[str]) -> bool:
    """Whether a command answers --dry-run --json: the trainer's and the sweep's, unless it asks for help."""
    if not command or not PYTHON_EXECUTABLE.fullmatch(command[0]) or list(command[1:2]) != ["-m"]:
        return False
    known = any(list(command[2 : 2 + len(start)]) == start for start in SELF_DESCRIBING_COMMANDS)
    return known and "-h" not in command and "--help" not in command


def describe(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The `--dry-run --json` answer of the trainer or the sweep, parsed; None for any other command.

    Raises:
        InputError: the command rejects its input, with its own message, or does not answer with JSON in time.
    """
    if not describes_itself(command):
        return None
    try:
        completed = subprocess.run(
            [sys.executable, *command[1:], "--dry-run", "--json"],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=DRY_RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the command did not answer --dry-run --json within {DRY_RUN_TIMEOUT_S} s") from None
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit {completed.returncode}"]
        raise InputError(f"the command rejects its input: {lines[-1].removeprefix('error: ')}")
    try:
        return json.loads(completed.stdout)
    except ValueError:
        raise InputError(f"--dry-run --json of the command is not JSON: {completed.stdout[:100]!r}") from None


def gang_alternatives(description: Mapping[str, Any]) -> list[list[Bundle]]:
    """The gangs a self-describing command can run as, in order of preference: on GPUs first, if it can use them."""
    preferred = description.get("bundles_where_gpus_suffice")
    return ([preferred] if preferred else []) + [description["bundles"]]


def job_name(description: Mapping[str, Any] | None, command: Sequence[str]) -> str:
    """A job's name: that of the run or the sweep, or else the command's first argument that is no option."""
    for kind in ("run", "sweep"):
        if description and kind in description:
            return description[kind]["name"]
    names = [word for word in command if not word.startswith("-") and not PYTHON_EXECUTABLE.fullmatch(word)]
    return (re.sub(r"[^A-Za-z0-9._-]", "-", Path((names or command)[0]).name).strip("._-") or "job")[:100]


def parse_resources(text: str) -> list[Bundle]:
    """Parse `--resources`: comma-separated amounts, after `N*` for N processes, joined by `+`; one bundle per process.

    Raises:
        InputError: the text is not of that form.
    """
    gang: list[Bundle] = []
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,4})\s*\*)?\s*(\w+=[\d.]+(?:\s*,\s*\w+=[\d.]+)*)\s*", part)
        try:
            pairs = [pair.split("=") for pair in match[2].split(",")] if match else []
            bundle = {key.strip(): float(amount) for key, amount in pairs}
        except ValueError:
            bundle = {}
        if not match or not bundle or match[1] == "0":
            raise InputError(f"--resources {text!r}: allowed: CPU=1, or 2*CPU=1,GPU=1, or CPU=1+2*CPU=4,GPU=1")
        gang += [bundle] * int(match[1] or 1)
    return gang


def job_environment(pairs: Sequence[str], commit: str | None) -> dict[str, str]:
    """A job's environment variables: where results and MLflow are, the git commit, and those of `--env NAME=VALUE`.

    Raises:
        InputError: a pair that is not NAME=VALUE.
    """
    variables = {key: os.environ[key] for key in INHERITED_VARIABLES if key in os.environ}
    if commit:
        variables["DUALVIEW_GIT_COMMIT"] = commit
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InputError(f"--env {pair!r}: allowed: NAME=VALUE")
        variables[key] = value
    return variables
