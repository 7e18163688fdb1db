"""Solvers on a fixed grid of times: the grid, and the process's coefficients at its points."""

from abc import ABC
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.config import GridOptions
from diffusion.denoiser import Denoiser
from diffusion.process.sde import Chain, Process
from diffusion.solvers.base import Noise, Point, Solver, Wanted
from diffusion.tensors import to_floats

KARRAS_RHO = 7.0


def time_grid(process: Process, num_steps: int, options: GridOptions) -> Tensor:
    """The times that a solver visits, descending from t_max.

    With `options.denoise` the last time is 0, data, where x is the estimate of x_0; without, it is t_min. With
    `denoise`, `uniform` spacing is t_max (1 - i / num_steps), as in DDPM's samplers, and is rounded to whole steps of a
    chain; if that passed t_min before its last step, the steps to t_min are even instead.

    Args:
        process: the forward process.
        num_steps: number of steps, N.
        options: spacing and `denoise`.

    Returns:
        float64 [N + 1].

    Raises:
        ValueError: more steps than a chain has, with uniform spacing.
    """
    whole = isinstance(process, Chain) and options.spacing == "uniform"
    max_steps = process.num_steps - (0 if options.denoise else 1)
    if whole and not 1 <= num_steps <= max_steps:
        raise ValueError(
            f"solver.num_steps = {num_steps}; allowed: 1 to {max_steps}, whole steps of a chain of "
            f"num_train_timesteps = {process.num_steps}; for more use solver.spacing = log_snr or karras"
        )
    if options.spacing == "uniform" and options.denoise and process.t_max / num_steps >= process.t_min:
        times = process.t_max * (1 - torch.arange(num_steps, dtype=torch.float64) / num_steps)
    else:
        times = _spaced(process, num_steps - 1 if options.denoise else num_steps, options.spacing)
    if whole:
        times = times.round()
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)]) if options.denoise else times


def _spaced(process: Process, intervals: int, spacing: str) -> Tensor:
    """`intervals` + 1 times from t_max to t_min, even in t, log-SNR or edm_sigma^(1 / rho)."""
    fraction = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    if spacing == "uniform":
        inner = ends[0] + fraction * (ends[1] - ends[0])
    elif spacing == "log_snr":
        low, high = process.log_snr(ends)
        inner = process.time(low + fraction * (high - low))
    else:
        first, last = torch.exp(-process.log_snr(ends) / (2 * KARRAS_RHO))
        inner = process.time(-2 * KARRAS_RHO * torch.log(first + fraction * (last - first)))
    inner[0], inner[-1] = ends[0], process.t_min if intervals else ends[0]
    return inner


def points(t: Tensor, alpha: Tensor, sigma: Tensor) -> list[Point]:
    """Points as Python floats, from times, alphas and sigmas [N]."""
    return [Point(*values) for values in zip(to_floats(t), to_floats(alpha), to_floats(sigma), strict=True)]


class GridSolver(Solver, ABC):
    """A solver of `num_steps` steps on a fixed grid of times.

    Args:
        options: the solver's configuration.
        num_steps: number of steps, N.
        denoiser: gives the process and the parameterization; its network is not called.
        noise: the images' own noise.
        label: int64 [B], or None.

    Attributes:
        times: float64 [N + 1], descending from t_max.
        points: t, alpha and sigma at the times, as floats.
        log_snrs: log-SNR at the times, as floats; +inf at data.

    Raises:
        ValueError: more steps than a chain has, with uniform spacing.
    """

    options: GridOptions

    def __init__(
        self, options: GridOptions, num_steps: int, denoiser: Denoiser, noise: Noise, label: Tensor | None = None
    ) -> None:
        super().__init__(options, denoiser, noise, label)
        self.times = time_grid(self.process, num_steps, options)
        log_snr = self.process.log_snr(self.times)
        alpha, sigma = self.process.alpha_at(log_snr), self.process.sigma_at(log_snr)
        self.log_snrs = to_floats(log_snr)
        self.points = points(self.times, alpha, sigma)

    def intervals(self) -> list[tuple[Point, Point]]:
        """The pairs of points (t, s) between which the solver steps."""
        return list(pairwise(self.points))

    def wanted(self, at: Point) -> Wanted:
        """A request for an estimate of all rows at this point."""
        return Wanted(self.x, at)
