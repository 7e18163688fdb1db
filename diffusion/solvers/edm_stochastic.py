"""EDM's stochastic sampler (Karras et al. 2022, algorithm 2): add noise, then a Heun step from the higher level."""

import math

import torch
from torch import Tensor

from diffusion.config import EdmStochastic
from diffusion.denoiser import Denoiser
from diffusion.prediction import Coefficient
from diffusion.solvers.base import Noise, Point, Steps, Wanted
from diffusion.solvers.grid import GridSolver, points
from diffusion.solvers.heun import trapezium


class EdmStochasticSolver(GridSolver):
    """Before each Heun step the noise level s = edm_sigma is raised to s_hat = s (1 + gamma).

    gamma = min(s_churn / N, sqrt(2) - 1) for s in [s_min, s_max], else 0; s_hat never exceeds the process's most noise,
    so the first step adds none. s_churn = 0 is `heun`. Two evaluations a step; the step to data is Euler's, of one.
    """

    def __init__(self, config: EdmStochastic, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)
        self.config = config

    def steps(self) -> Steps:
        """For each step: raise the noise level, then Heun's two evaluations."""
        raised = raised_points(self)
        for i, ((at_t, at_s), at_hat) in enumerate(zip(self.intervals(), raised, strict=True)):
            x_hat = self._raise(at_t, at_hat, i + 1)
            x_0, epsilon, _ = yield Wanted(x_hat, at_hat)
            self.x = at_s.alpha * x_0 + at_s.sigma * epsilon
            if at_s.t == 0:
                return
            epsilon_s = (yield self.wanted(at_s)).epsilon
            self.x = trapezium(x_hat, at_hat, at_s, epsilon, epsilon_s)

    def _raise(self, at_t: Point, at_hat: Point, draw: int) -> Tensor:
        """x_hat = alpha_hat (y + sqrt(s_hat^2 - s^2) s_noise z), y = x / alpha."""
        added = added_variance(at_t, at_hat)
        if added <= 0:
            return self.x
        ratio = at_hat.alpha / at_t.alpha
        return ratio * self.x + self.config.s_noise * added**0.5 * self.noise.draw(draw).to(self.x)


def added_variance(at_t: Point, at_hat: Point) -> Coefficient:
    """alpha_hat^2 (s_hat^2 - s^2): the variance of the noise that raises x from edm_sigma s to s_hat."""
    return at_hat.sigma**2 - (at_hat.alpha / at_t.alpha * at_t.sigma) ** 2


def raised_points(solver: EdmStochasticSolver) -> list[Point]:
    """The points, one a step, at which the Heun steps start after noise has been added."""
    config, process = solver.config, solver.process
    log_snr = process.log_snr(solver.times[:-1])
    edm_sigma = torch.exp(-log_snr / 2)
    gamma = min(config.s_churn / config.num_steps, math.sqrt(2) - 1)
    within = (gamma > 0) & (edm_sigma >= config.s_min) & (edm_sigma <= config.s_max)
    raised = log_snr - 2 * math.log1p(gamma) * within
    t = torch.where(within, process.time(raised), solver.times[:-1])
    return points(t, process.alpha(t), process.sigma(t))
