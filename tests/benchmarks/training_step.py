"""`python -m tests.benchmarks.training_step`: training steps beside a bare PyTorch loop, in turns.

Every contestant is a process a rank (contestants.py), and waits while the others have their turn.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.contestants import BARE, OURS

ROWS = 128


@dataclass
class Contestant:
    """The ranks of one contestant, and the images/s of each of its turns."""

    name: str
    ranks: "list[subprocess.Popen[str]]"
    rates: list[float] = field(default_factory=list)

    def turn(self, steps: int) -> float:
        """Take steps on all ranks at once; images/s over all of them."""
        for rank in self.ranks:
            assert rank.stdin
            print(steps, file=rank.stdin, flush=True)
        return sum(ROWS * steps / self._answer(rank) for rank in self.ranks)

    def ready(self) -> None:
        """Wait until all ranks are."""
        for rank in self.ranks:
            self._line(rank, "ready")

    def _answer(self, rank: "subprocess.Popen[str]") -> float:
        return float(self._line(rank, "took").split()[1])

    def _line(self, rank: "subprocess.Popen[str]", begins: str) -> str:
        assert rank.stdout
        for line in rank.stdout:
            if line.startswith(begins):
                return line
        raise RuntimeError(f"{self.name}: ended")


def contestant(name: str, loop: str, world: int, sets: list[str], storage: Path, threads: int) -> Contestant:
    """Start one."""
    own = [f"run.storage={storage / name}", "run.name=run", "run.register_as=null", *sets]
    words = [word for item in own for word in ("--set", item)]
    common = [sys.executable, "-m", "tests.benchmarks.contestants", loop, "--threads", str(threads), *words]
    common += ["--world", str(world), "--store", str(storage / f"{name}-store")]
    return Contestant(
        name,
        [
            subprocess.Popen([*common, "--rank", str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for rank in range(world)
        ],
    )


def main() -> None:
    """Start all, give each its turns, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training_step", description=__doc__)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--stages", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = [contestant(BARE, BARE, options.world, options.sets, Path(folder), options.threads)]
        for stage in options.stages:
            own = [
                f"parallel.workers={options.world}",
                f"parallel.zero_stage={stage}",
                f"training.global_batch_size={ROWS * options.world}",
                "training.steps=1000000",
                "run.checkpoint_every=1000000",
                *options.sets,
            ]
            all_of_them.append(contestant(f"stage-{stage}", OURS, options.world, own, Path(folder), options.threads))
        try:
            for each in all_of_them:
                each.ready()
            for turn in range(options.turns + 1):
                for each in all_of_them:
                    rate = each.turn(options.steps)
                    if turn:
                        each.rates.append(rate)
        finally:
            for each in all_of_them:
                for rank in each.ranks:
                    rank.kill()
                    rank.wait()
        reference = all_of_them[0].rates
        for each in all_of_them:
            ratios = [rate / beside for rate, beside in zip(each.rates, reference, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{each.name:<12} {statistics.median(each.rates):8.0f} images/s   of bare: {middle:.3f} "
                f"({low:.3f} to {high:.3f}); of the best turns {max(each.rates) / max(reference):.3f}"
            )


if __name__ == "__main__":
    main()
