"""DDIM (Song, Meng & Ermon, 2021): a family of reverse chains with the marginals of equation (3)."""

import torch
from torch import Tensor

from diffusion.chain import posterior
from diffusion.config import Ddim
from diffusion.schedule import Schedule
from diffusion.solvers.base import ImageNoise, Solver


class DdimSolver(Solver):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, with v = eta^2 beta_tilde.

    eta = 0 is deterministic (first-order probability-flow ODE); eta = 1 is `ancestral` with beta_tilde.
    """

    def __init__(self, config: Ddim, schedule: Schedule, noise: ImageNoise) -> None:
        """Start at x_T."""
        super().__init__(schedule, noise, config.num_steps, config.clip_x0)
        self.eta = config.eta

    def step(self, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:
        """One DDIM step from t to s."""
        alpha, sigma = self.schedule.alpha[s], self.schedule.sigma[s]
        variance = self.eta**2 * posterior(self.schedule, torch.tensor([s]), torch.tensor([t])).variance[0]
        mean = alpha.to(x_0) * x_0 + torch.sqrt(sigma**2 - variance).to(x_0) * epsilon
        if variance == 0:
            return mean
        return mean + variance.sqrt().to(x_0) * self.noise.draw(self.position + 1).to(x_0)
