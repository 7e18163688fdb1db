"""DPM-Solver++ (2M) (Lu et al., 2022): second-order multistep on the probability-flow ODE, in half log-SNR."""

import math

from torch import Tensor

from diffusion.config import Dpmpp2M
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver


class Dpmpp2MSolver(GridSolver):
    """x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D, with D extrapolated from the last two estimates of x_0.

    lambda = log_snr / 2, h = lambda_s - lambda_t, r = h_previous / h, D = (1 + 1 / 2r) x_0 - (1 / 2r) x_0_previous. The
    first step and the one to data (h infinite) are of first order: D = x_0. Order 2; one evaluation a step.
    """

    def __init__(self, config: Dpmpp2M, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """One evaluation and one multistep update for each step."""
        previous: tuple[Tensor, float] | None = None
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, _, _ = yield self.wanted(at_t)
            h = (self.log_snrs[i + 1] - self.log_snrs[i]) / 2
            target = x_0 if previous is None or math.isinf(h) else extrapolated(x_0, h, *previous)
            self.x = (at_s.sigma / at_t.sigma) * self.x - at_s.alpha * math.expm1(-h) * target
            previous = (x_0, h)


def extrapolated(x_0: Tensor, h: float, x_0_previous: Tensor, h_previous: float) -> Tensor:
    """D = (1 + 1 / 2r) x_0 - (1 / 2r) x_0_previous, r = h_previous / h: x_0 extrapolated to half a step ahead.

    Args:
        x_0: estimate at the start of this step, [B, ...].
        h: length of this step in lambda = log_snr / 2.
        x_0_previous: estimate at the start of the previous step, [B, ...].
        h_previous: length of the previous step in lambda.
    """
    half_inverse_r = h / (2 * h_previous)
    return (1 + half_inverse_r) * x_0 - half_inverse_r * x_0_previous
