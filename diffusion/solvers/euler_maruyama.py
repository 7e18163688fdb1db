"""The Euler-Maruyama method on the reverse SDE, equation (10), in the process's own time."""

import torch
from torch import Tensor

from diffusion.config import EulerMaruyama
from diffusion.denoiser import Denoiser
from diffusion.process.sde import Process
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.euler import reverse_sde_coefficients
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats


class EulerMaruyamaSolver(GridSolver):
    """x_s = x_t + (s - t) (f x - g^2 score) + g sqrt(t - s) z; the step to data is x = x_0.

    Weak order 1; one evaluation a step.
    """

    def __init__(self, config: EulerMaruyama, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """One evaluation and one update for each step."""
        on_x, on_epsilon = (to_floats(c) for c in reverse_sde_coefficients(self.process, self.times[:-1]))
        lengths, stds = to_floats(self.times.diff()), to_floats(step_stds(self.process, self.times))
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, epsilon, _ = yield self.wanted(at_t)
            if at_s.t == 0:
                self.x = x_0
                return
            mean = (1 + lengths[i] * on_x[i]) * self.x + (lengths[i] * on_epsilon[i]) * epsilon
            self.x = mean + stds[i] * self.noise.draw(i + 1).to(mean)


def step_stds(process: Process, times: Tensor) -> Tensor:
    """g(t) sqrt(t - s), the standard deviation of the noise added in each step from t to s.

    Args:
        process: the forward process.
        times: float64 [num_steps + 1], descending.

    Returns:
        float64 [num_steps].
    """
    return torch.sqrt(process.squared_diffusion(times[:-1]) * -times.diff())
