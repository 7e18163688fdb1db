"""`python -m tests.benchmarks.alongside`: what evaluating checkpoints costs the training beside it.

One run of digits. While it trains, phases take turns: nothing beside it, the evaluation of a checkpoint, and a load
that knows nothing of it: the same network, evaluated as far behind in priority as an evaluation is. The load's cost is
that of sharing the machine with anything; what the evaluation costs beyond it is its own doing.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.timing import quartiles
from trainer.run.journal import Journal, Metrics

EVALUATION, LOAD, NOTHING = "evaluation", "load", "nothing"
MARGIN_S, TURN_S, POLL_SECONDS = 0.5, 8.0, 0.05
EVERY, LOG_EVERY, CHECKPOINT_EVERY = 250, 5, 25
LOADED = """
from trainer.evaluate.tasks import yield_cpu
yield_cpu()
import torch
from diffusion.config import UNetConfig
from diffusion.network import build_network
torch.set_num_threads(1)
network = build_network(UNetConfig(channels=(32, 64), attention=(False, True)), (1, 8, 8))
with torch.inference_mode():
    while True:
        network(torch.randn(128, 1, 8, 8), torch.rand(128), None)
"""


@dataclass
class Phases:
    """Which phase was on from when on."""

    marks: list[tuple[float, str]] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Another phase, unless it is the same."""
        if not self.marks or self.marks[-1][1] != name:
            self.marks.append((time.time(), name))

    def of(self, begin: float, end: float) -> str | None:
        """The phase that was on all the time between; None near a change."""
        before = [(at, name) for at, name in self.marks if at <= end + MARGIN_S]
        return before[-1][1] if before and before[-1][0] + MARGIN_S <= begin else None


def evaluating(folder: Path) -> bool:
    """Whether a checkpoint is being evaluated."""
    return any(not (package.parent / "evaluation.json").exists() for package in folder.glob("*/package"))


def watch(training: "subprocess.Popen[bytes]", load: "subprocess.Popen[bytes]", run: Path) -> Phases:
    """Note phases until training ends; while no checkpoint is evaluated, the load is let run by turns."""
    phases = Phases()
    while training.poll() is None:
        if evaluating(run / "evaluations"):
            load.send_signal(signal.SIGSTOP)
            phases.begin(EVALUATION)
        elif int(time.time() / TURN_S) % 2:
            load.send_signal(signal.SIGCONT)
            phases.begin(LOAD)
        else:
            load.send_signal(signal.SIGSTOP)
            phases.begin(NOTHING)
        time.sleep(POLL_SECONDS)
    return phases


def throughput(run: Path, phases: Phases) -> dict[str, list[float]]:
    """Steps/s between neighbouring records of the journal, by phase."""
    found: dict[str, list[float]] = {name: [] for name in (NOTHING, LOAD, EVALUATION)}
    records = Journal(run / "journal.jsonl").records(Metrics)
    for first, second in pairwise(records):
        begin, end = first.time_ms / 1000, second.time_ms / 1000
        if phase := phases.of(begin, end):
            found[phase].append((second.step - first.step) / (end - begin))
    return found


def main() -> None:
    """Train, and print a line for each phase."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.alongside", description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        settings = {
            "run.storage": storage,
            "run.name": "run",
            "run.register_as": "null",
            "run.evaluate_every": EVERY,
            "run.checkpoint_every": CHECKPOINT_EVERY,
            "run.log_every": LOG_EVERY,
            "training.steps": options.steps,
            "parallel.workers": options.workers,
            "evaluation.samples": options.samples,
            "evaluation.metrics": "[vlb, frechet]",
        }
        sets = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
        command = [sys.executable, "-m", "trainer", "--config", "configs/digits.yaml", *sets]
        load = subprocess.Popen([sys.executable, "-c", LOADED])
        load.send_signal(signal.SIGSTOP)
        try:
            phases = watch(subprocess.Popen(command), load, Path(storage) / "digits" / "run")
        finally:
            load.kill()
        found = throughput(Path(storage) / "digits" / "run", phases)
    plain = statistics.fmean(found[NOTHING])
    for name, values in found.items():
        change, error = statistics.fmean(values) / plain - 1, statistics.stdev(values) / len(values) ** 0.5 / plain
        text = f"{quartiles(values)} steps/s, mean {100 * change:+.1f} +- {100 * error:.1f} %"
        print(f"{name:<12} {text}, {len(values)} times {LOG_EVERY} steps")


if __name__ == "__main__":
    main()
