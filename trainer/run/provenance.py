"""The code that made a run: the git commit of this checkout, or of the checkout that a job was submitted from."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def git_commit() -> str:
    """The commit, `-dirty` appended with uncommitted changes; `unknown` outside a checkout.

    A submitted job's working directory is a copy without history: set DUALVIEW_GIT_COMMIT in its runtime environment.
    """
    from_environment = os.environ.get("DUALVIEW_GIT_COMMIT")
    if from_environment:
        return from_environment
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
