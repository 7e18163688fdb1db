"""`python -m tests.benchmarks.solver_costs`: what a solver costs beside its network, at batch 16 on the digits.

For every solver: the time of `want()` and `feed()` over that of the evaluations, both measured
in turns on one core. Results go to docs/benchmarks.md by hand, with machine and date.
"""

import statistics
import time
from typing import get_args

import torch
from torch import Tensor

from diffusion.config import DdpmProcess, SolverConfig, UNetConfig
from diffusion.denoiser import Denoiser
from diffusion.network import build_network
from diffusion.process.sde import make_process
from diffusion.solvers import ImageNoise, make_solver
from tests.benchmarks.timing import quartiles, timed

SHAPE, ROWS, REPEATS, STEPS = (1, 8, 8), 16, 15, 30


def overhead(config: SolverConfig, denoiser: Denoiser, seed: int) -> tuple[float, float]:
    """Seconds in the solver and in the denoiser of one sampling run."""
    noise = ImageNoise(seed, range(ROWS), SHAPE)
    inside = 0.0
    begin = time.perf_counter()
    solver = make_solver(config, denoiser, noise)
    while (query := solver.want()) is not None:
        answer: list[Tensor] = []
        inside += timed(lambda q=query, a=answer: a.append(denoiser.output(q.x, q.t, q.label)))
        solver.feed(answer[0])
    return time.perf_counter() - begin - inside, inside


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    denoiser = Denoiser(build_network(UNetConfig(), SHAPE).eval(), make_process(DdpmProcess()), "epsilon")
    configs: list[SolverConfig] = [kind() for kind in get_args(get_args(SolverConfig)[0])]
    configs = [c.model_copy(update={"num_steps": STEPS}) if hasattr(c, "num_steps") else c for c in configs]
    shares: dict[str, list[float]] = {config.kind: [] for config in configs}
    with torch.inference_mode():
        for turn in range(REPEATS + 1):
            for config in configs:
                outside, inside = overhead(config, denoiser, turn)
                if turn:
                    shares[config.kind].append(100 * outside / inside)
    print("solver, percent of the network's time outside it, median and quartiles")
    for kind, values in sorted(shares.items(), key=lambda item: statistics.median(item[1])):
        print(f"{kind:22s} {quartiles(values)}")


if __name__ == "__main__":
    main()
