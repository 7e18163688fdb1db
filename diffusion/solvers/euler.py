"""Euler's method on the probability-flow ODE (Song et al. 2021, equation 13), in the process's own time."""

from torch import Tensor

from diffusion.config import Euler
from diffusion.denoiser import Denoiser
from diffusion.process.sde import Process
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats


class EulerSolver(GridSolver):
    """x_s = x_t + (s - t) (f x - g^2 score / 2); the step to data is x = x_0.

    Order 1; one evaluation a step.
    """

    def __init__(self, config: Euler, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """One evaluation and one update for each step."""
        on_x, on_epsilon = (to_floats(c) for c in ode_coefficients(self.process, self.times[:-1]))
        lengths = to_floats(self.times.diff())
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, epsilon, _ = yield self.wanted(at_t)
            if at_s.t == 0:
                self.x = x_0
            else:
                self.x = (1 + lengths[i] * on_x[i]) * self.x + (lengths[i] * on_epsilon[i]) * epsilon


def log_snr_coefficients(process: Process, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The probability-flow ODE over log-SNR as dx / d log_snr = a x + b eps.

    a = d log(alpha) / d log_snr and b = -sigma / 2, whatever the schedule.

    Args:
        process: gives alpha and sigma as functions of log-SNR.
        log_snr: float64 of any shape.

    Returns:
        a and b, float64, the shape of `log_snr`.
    """
    return process.dlogalpha_dlogsnr_at(log_snr), -process.sigma_at(log_snr) / 2


def ode_coefficients(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """The probability-flow ODE dx / dt = f x - g^2 score / 2 as a x + b eps: a = f, b = g^2 / (2 sigma_t).

    Args:
        process: the forward process.
        t: times above 0, of any shape.

    Returns:
        a and b per unit of t, float64, the shape of t.
    """
    on_x, on_epsilon = log_snr_coefficients(process, process.log_snr(t))
    slope = process.dlogsnr_dt(t)
    return on_x * slope, on_epsilon * slope


def reverse_sde_coefficients(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """The drift of the reverse SDE, equation (10), f x - g^2 score, as a x + b eps: a = f, b = g^2 / sigma_t.

    Args:
        process: the forward process.
        t: times above 0, of any shape.

    Returns:
        a and b per unit of t, float64, the shape of t; b is twice the ODE's.
    """
    on_x, on_epsilon = ode_coefficients(process, t)
    return on_x, 2 * on_epsilon
