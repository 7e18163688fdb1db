"""Ancestral sampling: the reverse chain p_theta(x_s | x_t) of equations (5)-(6), exact for any s < t."""

import torch
from torch import Tensor

from diffusion.chain import ReverseVariance, posterior, reverse_variance
from diffusion.config import Ancestral
from diffusion.schedule import Schedule
from diffusion.solvers.base import ImageNoise, Solver


class AncestralSolver(Solver):
    """x_s = mu_theta(x_t, t) + sqrt(Sigma_theta) z, with z = 0 on the last step to s = 0."""

    def __init__(self, config: Ancestral, schedule: Schedule, noise: ImageNoise, variance: ReverseVariance) -> None:
        """Start at x_T; `variance` chooses Sigma_theta."""
        super().__init__(schedule, noise, config.num_steps, config.clip_x0)
        self.variance: ReverseVariance = variance

    def step(self, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:  # noqa: ARG002 - the solvers' common form
        """One draw from p_theta(x_s | x_t)."""
        at_s, at_t = torch.tensor([s]), torch.tensor([t])
        mean = posterior(self.schedule, at_s, at_t).mean(self.x, x_0)
        if s == 0:
            return mean
        std = reverse_variance(self.schedule, at_s, at_t, self.variance).sqrt().to(mean)
        return mean + std * self.noise.draw(self.position + 1).to(mean)
