"""`python -m tests.benchmarks.bound RUN`: network evaluations that the bound of a fixed set of images takes, two ways.

RUN is the folder of a finished run. Naive: t uniform on 2..T, independent for every draw and image. Ours: as
`trainer.evaluate` does it, steps drawn by a proposal measured in a pilot and stratified over the whole set. The
standard error is that of the estimate of the set's mean bound, over repetitions with other noise on
the same images. Evaluations for another standard error follow from its square. The pilot's are counted.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.images import to_model_range
from diffusion.likelihood.discrete import bits_per_dim, estimate_vlb
from diffusion.likelihood.proposal import StepProposal, spread_uniforms
from diffusion.package import load_package
from tests.benchmarks.solver_table import dataset_of
from trainer.config.evaluation import EvaluationConfig
from trainer.evaluate.likelihood.scorer import PILOT_IMAGES, PILOT_STEPS, Likelihoods, all_draws

TARGET = 0.002
BLOCK = 40


def repetition(likelihoods: Likelihoods, x_0: Tensor, proposal: StepProposal, u: np.ndarray, seed: int) -> float:
    """The set's mean bound in bits/dim, with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    steps, weights = proposal.draw(torch.from_numpy(u))
    total = 0.0
    for first in range(0, len(x_0), BLOCK):
        part = slice(first, first + BLOCK)
        eps = torch.randn(len(x_0[part]), all_draws(u.shape[1]), *x_0.shape[1:], generator=generator)
        vlb = estimate_vlb(likelihoods.kernel, x_0[part], steps[part], eps, weights=weights[part])
        total += float(bits_per_dim(vlb.total, x_0[0].numel()).sum())
    return total / len(x_0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bound", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--draws", type=int, nargs=2, default=(16, 8), help="per image: naive, ours")
    options = parser.parse_args()
    data = dataset_of(options.run)
    config = EvaluationConfig.model_validate(
        json.loads((options.run / "run.json").read_text())["config"]["evaluation"], strict=False
    )
    likelihoods = Likelihoods(load_package(options.run / "package")[0], config, data)
    x_0 = to_model_range(data.images("heldout")[:])
    needed: dict[str, float] = {}
    with torch.inference_mode():
        num_steps = likelihoods.denoiser.process.num_steps
        for name, draws in zip(("naive", "ours"), options.draws, strict=True):
            found: list[float] = []
            proposal = StepProposal.uniform(num_steps) if name == "naive" else likelihoods.step_proposal
            for seed in range(options.repetitions):
                generator = np.random.default_rng(seed)
                shape = (len(x_0), draws)
                u = generator.random(shape) if name == "naive" else spread_uniforms(generator, *shape)
                found.append(repetition(likelihoods, x_0, proposal, u, seed))
            error = float(np.std(found, ddof=1))
            spread = error / math.sqrt(2 * (len(found) - 1))
            evaluations = len(x_0) * all_draws(draws)
            needed[name] = evaluations * (error / TARGET) ** 2
            print(
                f"{name}: {np.mean(found):.4f} bits/dim, standard error {error:.5f} ± {spread:.5f} from {evaluations} "
                f"evaluations; {needed[name]:.0f} for {TARGET}"
            )
    needed["ours"] += PILOT_IMAGES * PILOT_STEPS
    print(f"naive / ours, the pilot's {PILOT_IMAGES * PILOT_STEPS} counted: {needed['naive'] / needed['ours']:.1f}")


if __name__ == "__main__":
    main()
