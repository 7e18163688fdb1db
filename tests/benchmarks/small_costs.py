"""`python -m tests.benchmarks.small_costs`: what the command line and the keyed draws cost, as medians with quartiles.

Each pair is measured interleaved in one run. Results go to docs/benchmarks.md by hand, with machine and date.
"""

import subprocess
import sys
from collections.abc import Callable

import torch

from diffusion.config import DdpmProcess, ObjectiveConfig, UNetConfig
from diffusion.network import build_network
from diffusion.process.sde import make_process
from tests.benchmarks.timing import interleaved, quartiles
from trainer.config.training import TrainingConfig
from trainer.worker.batch_plan import BatchPlan

REPEATS = 15


def command(*arguments: str) -> Callable[[], object]:
    """A Python process with these arguments."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    plan = BatchPlan(0, 1437, TrainingConfig(), make_process(DdpmProcess()), ObjectiveConfig(), (1, 8, 8))
    network = build_network(UNetConfig(), (1, 8, 8))
    rows = plan.rows(1, 0, 64)

    def forward_and_backward() -> None:
        network(rows.eps, rows.t.float(), None).square().mean().backward()

    results = interleaved(
        {
            "python -c pass": command("-c", "pass"),
            "python -m trainer --help": command("-m", "trainer", "--help"),
            "draws of 64 rows": lambda: plan.rows(2, 0, 64),
            "forward + backward of 64 rows": forward_and_backward,
        },
        REPEATS,
    )
    for name, seconds in results.items():
        print(f"{name:32s} {quartiles([1000 * value for value in seconds])} ms")


if __name__ == "__main__":
    main()
