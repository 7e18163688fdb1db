"""DPM-Solver++ (3M) (Lu et al., 2022): third-order multistep on the probability-flow ODE, in half log-SNR.

In lambda = log_snr / 2 all of the ODE but x_0 is integrated exactly:

    x_s = (sigma_s / sigma_t) x_t + sigma_s * integral of e^lambda x_0(lambda) d lambda

and x_0 is replaced by the quadratic through its last three estimates, whose integral is exact as well.
"""

import math

from torch import Tensor

from diffusion.config import Dpmpp3M
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver


class Dpmpp3MSolver(GridSolver):
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (phi_1 x_0 + phi_2 x_0' + phi_3 x_0'').

    The derivatives x_0' and x_0'' in lambda are those of `taylor`; phi_1 = 1 - e^{-h}, phi_2 = h - phi_1, phi_3 = h^2 /
    2 - phi_2. The first step is of first order, the second of second, and the step to data (h infinite) of first. Order
    3; one evaluation a step.
    """

    def __init__(self, config: Dpmpp3M, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """One evaluation and one multistep update for each step."""
        history: list[tuple[float, Tensor]] = []
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, _, _ = yield self.wanted(at_t)
            here, there = self.log_snrs[i] / 2, self.log_snrs[i + 1] / 2
            history = [(here, x_0), *(past for past in history if math.isfinite(past[0]))][:3]
            self.x = (at_s.sigma / at_t.sigma) * self.x + at_s.alpha * integral(history, there - here)


def integral(history: list[tuple[float, Tensor]], h: float) -> Tensor:
    """The step's integral of e^l x_0(l) dl over [lambda, lambda + h], times e^{-(lambda + h)}.

    x_0 is taken to be the polynomial through `history`.

    Args:
        history: (lambda, x_0) of the last one to three evaluations, newest first.
        h: length of the step in lambda; may be infinite, and then the polynomial is constant.

    Returns:
        The shape of x_0.
    """
    phi = -math.expm1(-h)
    total = phi * history[0][1]
    if math.isinf(h):
        return total
    for order, derivative in enumerate(taylor(history), 1):
        # integrating by parts: phi_{k+1} = h^k / k! - phi_k
        phi = h**order / math.factorial(order) - phi
        total = total + phi * derivative
    return total


def taylor(history: list[tuple[float, Tensor]]) -> list[Tensor]:
    """The derivatives in lambda, first and second, of the polynomial through `history`, at its newest point.

    Args:
        history: (lambda, x_0) of the last one to three evaluations, newest first.

    Returns:
        As many derivatives as there are points but one.
    """
    if len(history) == 1:
        return []
    (l_0, d_0), (l_1, d_1) = history[:2]
    slope = (d_0 - d_1) / (l_0 - l_1)
    if len(history) == 2:
        return [slope]
    l_2, d_2 = history[2]
    curvature = (slope - (d_1 - d_2) / (l_1 - l_2)) / (l_0 - l_2)
    return [slope + (l_0 - l_1) * curvature, 2 * curvature]
