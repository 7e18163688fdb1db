"""The GPU script on a CPU with tiny sizes: every part gives numbers, and rows are kept as they come."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PARTS = {"peak", "training", "agreement", "kept", "solvers", "curve", "images", "deepspeed", "compiled", "others"}
SKIPPED = {"compiled", "deepspeed"}  # a minute of compiling, and DeepSpeed on one rank, which tests/integration has


def run(out: Path, *words: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(out), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text())


def test_every_part_gives_numbers_and_its_checks_pass(tmp_path: Path):
    words = [word for part in sorted(PARTS - SKIPPED) for word in ("--only", part)]
    code, report = run(tmp_path / "gpu.json", *words)
    assert {row["part"] for row in report["rows"]} == PARTS - SKIPPED
    assert [row for row in report["rows"] if row["passed"] is False] == []
    assert code == 0
    checks = {row["part"] for row in report["rows"] if row["passed"]}
    assert checks == {"agreement", "kept", "solvers"}
    assert sum(row["part"] == "solvers" for row in report["rows"]) == 12 + 2
    rates = [row["value"] for row in report["rows"] if row["unit"] == "images/s" and row["part"] == "training"]
    assert len(rates) == 2 * 5 + 1
    assert all(rate > 0 for rate in rates)


def test_without_time_left_every_part_says_so(tmp_path: Path):
    code, report = run(tmp_path / "gpu.json", "--budget", "0", "--only", "peak", "--only", "curve")
    assert code == 0
    assert [(row["part"], row["what"]) for row in report["rows"]] == [("peak", "not begun"), ("curve", "not begun")]
