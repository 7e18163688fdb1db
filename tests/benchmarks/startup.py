"""`python -m tests.benchmarks.startup`: what a worker's imports cost, plain and quick, in fresh processes by turns.

With directories of runs as arguments, how long the parts of those runs took, from their summaries.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

TURNS = 7
PLAIN = "import diffusers.models.unets.unet_2d, deepspeed, trainer.worker.loop, trainer.driver.ray_train"
QUICK = (
    "from trainer.worker.entry import MODULES, import_stack; import_stack(MODULES, 'unet', 'cpu'); "
    "import trainer.driver.ray_train"
)
TIMED = """
import os, time
os.environ["DS_ACCELERATOR"] = "cpu"
begin = time.perf_counter()
{}
print(time.perf_counter() - begin)
"""


def seconds(code: str) -> float:
    """One fresh process."""
    done = subprocess.run([sys.executable, "-c", TIMED.format(code)], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def imports() -> None:
    """Median and quartiles, by turns."""
    times: dict[str, list[float]] = {"plain": [], "quick": []}
    for _ in range(TURNS):
        times["plain"].append(seconds(PLAIN))
        times["quick"].append(seconds(QUICK))
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:<6} {middle:.2f} s ({low:.2f} to {high:.2f})")


def parts(directories: list[Path]) -> None:
    """A line per run: start-up, training, evaluation, and what is left of the whole."""
    for directory in directories:
        summary = json.loads((directory / "results" / "summary.json").read_text())
        print(directory.name, json.dumps(summary["seconds"]))


if __name__ == "__main__":
    parts([Path(word) for word in sys.argv[1:]]) if sys.argv[1:] else imports()
