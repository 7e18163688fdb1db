"""`python -m tests.benchmarks.small_costs`: what the command line and the keyed draws cost, as medians with quartiles.

Each pair is measured interleaved in one run. Results go to docs/benchmarks.md by hand, with machine and date.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from diffusion.config import StratifiedTime, UNetConfig
from diffusion.network import build_network
from trainer.draws import Draws

REPEATS = 15


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
    return f"{middle:8.2f} ms  ({low:.2f} to {high:.2f})"


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def interleaved(actions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each action, taken in turns after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(REPEATS + 1):
        for name, action in actions.items():
            taken = timed(action)
            if turn:
                seconds[name].append(taken)
    return seconds


def command(*arguments: str) -> Callable[[], object]:
    """A Python process with these arguments."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    draws = Draws(0, 1437, 128, 1000, StratifiedTime(), (1, 8, 8))
    network = build_network(UNetConfig(), (1, 8, 8))
    rows = draws.rows(1, 0, 64)

    def forward_and_backward() -> None:
        network(rows.eps, rows.t).square().mean().backward()

    results = interleaved(
        {
            "python -c pass": command("-c", "pass"),
            "python -m trainer --help": command("-m", "trainer", "--help"),
            "draws of 64 rows": lambda: draws.rows(2, 0, 64),
            "forward + backward of 64 rows": forward_and_backward,
        }
    )
    for name, seconds in results.items():
        print(f"{name:32s} {spread(seconds)}")


if __name__ == "__main__":
    main()
