"""`python -m tests.benchmarks.training_step`: training steps beside a bare PyTorch loop, in turns.

Every contestant is a process for each rank (contestants.py), and waits while the others have their turn. The bare loop
of W ranks is W loops at the same time that know nothing of each other; ratios are within a turn.

    python -m tests.benchmarks.training_step                              # one worker, ZeRO-0 and ZeRO-2
    python -m tests.benchmarks.training_step --world 2 --stages 0 1 2
    python -m tests.benchmarks.training_step --world 2 --stages 2 --beside-ray
    python -m tests.benchmarks.training_step --world 2 --stages 2 3 --steps 2 --set 'network.channels=[128,256]'
    python -m tests.benchmarks.training_step --checkpoint-every 50 --steps 50 --turns 9
    python -m tests.benchmarks.training_step --config configs/mnist.yaml --stages 2 --others other-venv/bin/python
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.contestants import BARE, OURS, READY, TOOK
from tests.benchmarks.other_trainers import LOOPS as OTHERS
from trainer.config.load import load_config
from trainer.data.prepare import prepare

ROWS = 128
NEVER = 10**6


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
        return sum(ROWS * steps / float(self.wait_for(TOOK, rank)) for rank in self.ranks)

    def wait_for(self, begins: str, rank: "subprocess.Popen[str]") -> str:
        """The rest of the next line of a rank that begins so."""
        assert rank.stdout
        for line in rank.stdout:
            if line.startswith(begins):
                return line.removeprefix(begins)
        raise RuntimeError(f"{self.name}: a rank has ended")


@contextmanager
def running(name: str, loop: str, options: argparse.Namespace, sets: list[str], storage: Path) -> Iterator[Contestant]:
    """A contestant whose ranks are ready, and end with the block."""
    place = storage / name.replace(" ", "-")
    own = [f"run.storage={place}", "run.name=run", "run.register_as=null", *sets, *options.sets]
    python = options.others if loop in OTHERS else sys.executable
    command = [python, "-m", "tests.benchmarks.contestants", loop, "--threads", str(options.threads)]
    command += ["--config", str(options.config)]
    command += ["--world", str(options.world), "--store", f"{place}-store"]
    command += [word for item in own for word in ("--set", item)]
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in range(options.world)
    ]
    contestant = Contestant(name, ranks)
    try:
        for rank in ranks:
            contestant.wait_for(READY, rank)
        yield contestant
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def compete(options: argparse.Namespace, contestants: dict[str, tuple[str, list[str]]]) -> dict[str, list[float]]:
    """Give each its turns, after one that does not count; the images/s of each."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        dataset = prepare(load_config(options.config, options.sets).data, Path(folder))
        options.sets.append(f"data.source={dataset.folder}")
        all_of_them = [
            stack.enter_context(running(name, loop, options, sets, Path(folder)))
            for name, (loop, sets) in contestants.items()
        ]
        for turn in range(options.turns + 1):
            for each in all_of_them:
                rate = each.turn(options.steps)
                if turn:
                    each.rates.append(rate)
    return {each.name: each.rates for each in all_of_them}


def main() -> None:
    """Start all, give each its turns, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training_step", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--world", type=int, default=1, help="ranks of each contestant (default 1)")
    add("--stages", type=int, nargs="*", default=[0, 2], help="ZeRO stages (default 0 2)")
    add("--turns", type=int, default=25)
    add("--steps", type=int, default=6, help="steps of a turn (default 6)")
    add("--threads", type=int, default=1, help="threads of a rank (default 1)")
    add("--config", type=Path, default=Path("configs/digits.yaml"), help="run file (default configs/digits.yaml)")
    add("--others", metavar="PYTHON", help="an environment with accelerate and others, whose loops take part, too")
    add("--beside-ray", action="store_true", help="with an idle local Ray on the machine")
    add("--checkpoint-every", type=int, help="another contestant, which writes a checkpoint every so many steps")
    add("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    options = parser.parse_args()
    common = [f"parallel.workers={options.world}", f"training.global_batch_size={ROWS * options.world}"]
    common += [f"training.steps={NEVER}", "run.evaluate_every=null"]
    alone = [f"training.global_batch_size={ROWS}"]
    contestants = {BARE: (BARE, alone)}
    for stage in options.stages:
        sets = [*common, f"parallel.zero_stage={stage}"]
        contestants[f"ZeRO-{stage}"] = (OURS, [*sets, f"run.checkpoint_every={NEVER}"])
        if options.checkpoint_every:
            contestants[f"ZeRO-{stage}-checkpoints"] = (
                OURS,
                [*sets, f"run.checkpoint_every={options.checkpoint_every}"],
            )
    if options.others:
        contestants |= {name: (name, alone) for name in OTHERS}
    if options.beside_ray:
        from trainer.runtime.ray_cluster import connect_ray

        os.environ.pop("RAY_ADDRESS", None)
        connect_ray()
    found = compete(options, contestants)
    reference = found[BARE]
    for name, rates in found.items():
        low, middle, high = statistics.quantiles((a / b for a, b in zip(rates, reference, strict=True)), n=4)
        print(f"{name:<28}{statistics.median(rates):8.0f} images/s   {middle:.3f} of bare ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
