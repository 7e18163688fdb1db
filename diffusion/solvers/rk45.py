"""The Dormand-Prince 5(4) method on the probability-flow ODE over log-SNR, where the ODE of every process is smooth."""

import torch
from torch import Tensor

from diffusion.config import Rk45
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Point, Solver, Steps, Wanted
from diffusion.solvers.dormand_prince import DormandPrince
from diffusion.solvers.euler import log_snr_coefficients
from diffusion.tensors import expand_to, to_floats


class Rk45Solver(Solver):
    """dx / d log_snr = a x + b eps from t_max to t_min, then, with `denoise`, the estimate of x_0 there.

    Every row has its own step size and error estimate; rows that are done are not evaluated again. Order 5, six
    evaluations an accepted step. A terminal SNR of zero is refused, since log-SNR is infinite there.
    """

    def __init__(self, config: Rk45, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, denoiser, noise, label)
        self.config = config

    def steps(self) -> Steps:
        """Integrate from the most noise to the least, then estimate x_0."""
        process, config = self.process, self.config
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        start, end = to_floats(process.log_snr(ends))
        stepper = DormandPrince(self.x, start, end, config.rtol, config.atol)
        while (wanted := stepper.want()) is not None:
            index, log_snr, x = wanted
            estimate = yield Wanted(x, self._point(log_snr, x), index)
            on_x, on_epsilon = log_snr_coefficients(process, log_snr)
            stepper.feed(expand_to(on_x, x) * x + expand_to(on_epsilon, x) * estimate.epsilon)
        self.x = stepper.y
        if config.denoise:
            last = torch.full((len(self.x),), end, dtype=torch.float64)
            self.x = (yield Wanted(self.x, self._point(last, self.x))).x_0

    def _point(self, log_snr: Tensor, x: Tensor) -> Point:
        process = self.process
        alpha, sigma = process.alpha_at(log_snr), process.sigma_at(log_snr)
        return Point(process.time(log_snr), expand_to(alpha, x), expand_to(sigma, x))
