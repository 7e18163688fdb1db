"""Heun's method on the probability-flow ODE in edm_sigma (Karras et al. 2022, algorithm 1).

With y = x / alpha and s = sigma / alpha the ODE of every process is dy / ds = eps.
"""

from torch import Tensor

from diffusion.config import Heun
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Point, Steps
from diffusion.solvers.grid import GridSolver


class HeunSolver(GridSolver):
    """y_next = y + (s_next - s) (eps + eps_next) / 2, with eps_next evaluated at the result of Euler's step.

    Order 2; two evaluations a step, and one in the step to data, which is Euler's.
    """

    def __init__(self, config: Heun, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """Two evaluations and one update for each step."""
        for at_t, at_s in self.intervals():
            x_t = self.x
            x_0, epsilon, _ = yield self.wanted(at_t)
            self.x = at_s.alpha * x_0 + at_s.sigma * epsilon
            if at_s.t == 0:
                return
            epsilon_s = (yield self.wanted(at_s)).epsilon
            self.x = trapezium(x_t, at_t, at_s, epsilon, epsilon_s)


def trapezium(x_t: Tensor, at_t: Point, at_s: Point, epsilon: Tensor, epsilon_s: Tensor) -> Tensor:
    """The trapezoidal rule y_s = y_t + (s - t) (eps_t + eps_s) / 2, with y = x / alpha and s, t as edm_sigma.

    Args:
        x_t: rows at the start of the step [B, ...].
        at_t: the start.
        at_s: the end.
        epsilon: eps at the start.
        epsilon_s: eps at the end.

    Returns:
        x_s = alpha_s y_s, the shape of x_t.
    """
    ratio = at_s.alpha / at_t.alpha
    return ratio * x_t + (at_s.sigma - ratio * at_t.sigma) * (epsilon + epsilon_s) / 2
