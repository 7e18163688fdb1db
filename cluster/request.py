"""From a command line to a job: ask the command itself what it will need, before it is queued.

`python -m trainer …` and `python -m tuning run …` answer `--dry-run --json` with their name and resource bundles, and
refuse bad input, so a typo is found when the job is submitted and not when its turn comes.
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

SELF_DESCRIBING = (["trainer"], ["tuning", "run"])
PYTHON = re.compile(r"(.*/)?python[\d.]*")
PASSED_ON = ("DUALVIEW_STORAGE", "MLFLOW_TRACKING_URI", "DUALVIEW_GIT_COMMIT")
TIME_LIMIT_S = 120


def describe(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What a command of ours says that it will do; None for any other command.

    Raises:
        InputError: the command refuses its input; the message is the command's own.
    """
    if not command or not PYTHON.fullmatch(command[0]) or list(command[1:2]) != ["-m"]:
        return None
    ours = any(list(command[2 : 2 + len(words)]) == words for words in SELF_DESCRIBING)
    if not ours or "-h" in command or "--help" in command:
        return None
    try:
        done = subprocess.run(
            [sys.executable, *command[1:], "--dry-run", "--json"],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the command did not say in {TIME_LIMIT_S} s what it would do; --resources tells it"
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise InputError(f"the command refuses: {lines[-1].removeprefix('error: ')}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise InputError(f"--dry-run --json of the command is not JSON: {done.stdout[:100]!r}") from None


def gangs(described: Mapping[str, Any]) -> list[list[Bundle]]:
    """The resource bundles of a described command: on GPUs where those suffice, else as it stands."""
    preferred = described.get("bundles_where_gpus_suffice")
    return ([preferred] if preferred else []) + [described["bundles"]]


def name(described: Mapping[str, Any] | None, command: Sequence[str]) -> str:
    """A job's name: the run's or the sweep's, or the first word of the command that says something."""
    for kind in ("run", "sweep"):
        if described and kind in described:
            return described[kind]["name"]
    words = [word for word in command if not word.startswith("-") and not PYTHON.fullmatch(word)]
    return (re.sub(r"[^A-Za-z0-9._-]", "-", Path((words or command)[0]).name).strip("._-") or "job")[:100]


def parse_resources(text: str) -> list[Bundle]:
    """A gang from `--resources`: comma-separated amounts, `N*` before them for N processes, `+` between kinds.

    Raises:
        InputError: naming what is allowed.
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


def environment(pairs: Sequence[str], commit: str | None) -> dict[str, str]:
    """The variables a job takes along: where results and MLflow are, the commit, and those of `--env NAME=VALUE`.

    Raises:
        InputError: a pair without a name.
    """
    taken = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    if commit:
        taken["DUALVIEW_GIT_COMMIT"] = commit
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InputError(f"--env {pair!r}: allowed: NAME=VALUE")
        taken[key] = value
    return taken
