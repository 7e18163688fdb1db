"""DPM-Solver++ (2M) (Lu et al., 2022): second-order multistep on the probability-flow ODE, in half log-SNR."""

import math

import torch
from torch import Tensor

from diffusion.config import Dpmpp2M
from diffusion.schedule import Schedule
from diffusion.solvers.base import ImageNoise, Solver


class Dpmpp2MSolver(Solver):
    """x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D, with D extrapolated from the last two estimates of x_0.

    lambda = log_snr / 2, h = lambda_s - lambda_t, r = h_previous / h, D = (1 + 1 / 2r) x_0 - (1 / 2r) x_0_previous. The
    first step and the last one (s = 0, h infinite) are first order: D = x_0.
    """

    def __init__(self, config: Dpmpp2M, schedule: Schedule, noise: ImageNoise) -> None:
        """Start at x_T with no history."""
        super().__init__(schedule, noise, config.num_steps, config.clip_x0)
        self.previous: tuple[Tensor, float] | None = None

    def step(self, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:  # noqa: ARG002 - the solvers' common form
        """One multistep update from t to s."""
        alpha_s, sigma_s, sigma_t = self.schedule.alpha[s], self.schedule.sigma[s], self.schedule.sigma[t]
        h = float(self.schedule.log_snr[s] - self.schedule.log_snr[t]) / 2
        estimate = x_0
        if self.previous is not None and s > 0:
            x_0_previous, h_previous = self.previous
            half_inverse_r = h / (2 * h_previous)
            estimate = (1 + half_inverse_r) * x_0 - half_inverse_r * x_0_previous
        self.previous = (x_0, h)
        decay = (sigma_s / sigma_t).to(x_0)
        gain = (alpha_s * torch.tensor(-math.expm1(-h), dtype=torch.float64)).to(x_0)
        return decay * self.x + gain * estimate
