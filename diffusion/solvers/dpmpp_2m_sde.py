"""SDE-DPM-Solver++ (2M) (Lu et al., 2022): second-order multistep on the reverse SDE, in half log-SNR."""

import math

from torch import Tensor

from diffusion.config import Dpmpp2MSde
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.dpmpp_2m import extrapolated
from diffusion.solvers.grid import GridSolver


class Dpmpp2MSdeSolver(GridSolver):
    """x_s = (sigma_s / sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z.

    h and D are those of `dpmpp_2m`; the step to data is x = D = x_0. Weak order 2; one evaluation a step.
    """

    def __init__(self, config: Dpmpp2MSde, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """One evaluation and one multistep update for each step."""
        previous: tuple[Tensor, float] | None = None
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, _, _ = yield self.wanted(at_t)
            h = (self.log_snrs[i + 1] - self.log_snrs[i]) / 2
            target = x_0 if previous is None or math.isinf(h) else extrapolated(x_0, h, *previous)
            gain = renewed(h)
            self.x = (at_s.sigma / at_t.sigma) * math.exp(-h) * self.x + at_s.alpha * gain * target
            if at_s.t > 0:
                self.x = self.x + at_s.sigma * gain**0.5 * self.noise.draw(i + 1).to(self.x)
            previous = (x_0, h)


def renewed(h: float) -> float:
    """1 - e^{-2h}: the fraction of the noise's variance that a step of length h in lambda draws anew."""
    return -math.expm1(-2 * h)
