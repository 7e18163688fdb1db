"""DDIM (Song, Meng & Ermon, 2021, equation 12): a family of reverse chains with the marginals of equation (3)."""

import torch
from torch import Tensor

from diffusion.config import Ddim
from diffusion.denoiser import Denoiser
from diffusion.process.kernels import posterior
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats


class DdimSolver(GridSolver):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, with v = eta^2 beta_tilde.

    eta = 0 is deterministic: Euler's method on the probability-flow ODE in edm_sigma, order 1, and DPM-Solver-1. eta =
    1 is `ancestral` with beta_tilde. One evaluation a step.
    """

    def __init__(self, config: Ddim, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)
        self.eta = config.eta

    def steps(self) -> Steps:
        """One evaluation and one update for each step."""
        variances = step_variances(self)
        # a posterior variance that is all of sigma_s^2 may be rounded to beyond it
        kept = to_floats(torch.sqrt((self.process.sigma(self.times[1:]) ** 2 - variances).clamp(min=0)))
        added = to_floats(variances.sqrt())
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, epsilon, _ = yield self.wanted(at_t)
            self.x = at_s.alpha * x_0 + kept[i] * epsilon
            if added[i] > 0:
                self.x = self.x + added[i] * self.noise.draw(i + 1).to(self.x)


def step_variances(solver: DdimSolver) -> Tensor:
    """v = eta^2 beta_tilde of every step (Song, Meng & Ermon, 2021, equation 16); 0 in the step to data.

    Returns:
        float64 [num_steps].
    """
    return solver.eta**2 * posterior(solver.process, solver.times[1:], solver.times[:-1]).variance
