"""Claim 11, for processes: sub-VP's sigma_t, and one marginal under forward process, ODE and reverse SDE."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffusion import config as configs, solvers
from diffusion.config import SubVpProcess, VeProcess, VpProcess
from diffusion.process.sde import Process, make_process
from diffusion.solvers import euler
from diffusion.solvers.dormand_prince import DormandPrince
from diffusion.tensors import to_floats
from diffusion.verify.claims.check import DATA, Check, max_relative_error
from diffusion.verify.claims.orders import FixedNoise

CONTINUOUS = {"vp": VpProcess(), "sub_vp": SubVpProcess(), "ve": VeProcess()}


def same_marginals(quick: bool) -> Iterator[Check]:
    """Claim 11: sub-VP's std is the square of VP's; the ODE and the reverse SDE have the process's marginals."""
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    vp, sub_vp = make_process(VpProcess()), make_process(SubVpProcess())
    yield Check("sub-VP std / VP std^2 - 1", max_relative_error(sub_vp.sigma(t), vp.sigma(t) ** 2), 0.0, 1e-12)
    for kind, config in CONTINUOUS.items():
        yield from _same_marginals(kind, make_process(config), 1e-7 if quick else 1e-9)


def _same_marginals(kind: str, process: Process, accuracy: float) -> Iterator[Check]:
    """On Gaussian data, the ODE's flow and the moments under ODE and reverse SDE end at alpha^2 v + sigma^2.

    `accuracy` is the rtol and atol of the solutions.
    """
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    first, last = to_floats(DATA.variance_at(process, ends))
    start = torch.tensor([[1.0]], dtype=torch.float64)
    rk45 = configs.Rk45(rtol=accuracy, atol=accuracy, clip_x0=False, denoise=False)
    flow = float(solvers.solve(DATA.denoiser(process), FixedNoise(start), rk45)) / process.prior_std
    yield Check(f"{kind}: variance of rk45's samples / exact - 1", flow**2 * first / last - 1, 0.0, 100 * accuracy)

    def ode(t: Tensor, variance: Tensor) -> Tensor:
        on_x, on_epsilon = euler.ode_coefficients(process, t)
        return 2 * (on_x + on_epsilon * process.sigma(t) / DATA.variance_at(process, t)) * variance

    def reverse_sde(t: Tensor, variance: Tensor) -> Tensor:
        on_x, on_epsilon = euler.reverse_sde_coefficients(process, t)
        drift = on_x + on_epsilon * process.sigma(t) / DATA.variance_at(process, t)
        return 2 * drift * variance - process.squared_diffusion(t)

    for what, slope in (("PF-ODE", ode), ("reverse SDE", reverse_sde)):
        relative_error = _integrated(slope, first, accuracy, *to_floats(ends)) / last - 1
        yield Check(f"{kind}: variance under the {what} / exact - 1", relative_error, 0.0, 100 * accuracy)


def _integrated(
    slope: Callable[[Tensor, Tensor], Tensor], value: float, accuracy: float, start: float, end: float
) -> float:
    """The solution at `end` of d value / dt = slope(t, value), started from `value` at `start`."""
    stepper = DormandPrince(torch.tensor([value], dtype=torch.float64), start, end, accuracy, accuracy)
    while (wanted := stepper.want()) is not None:
        _, t, y = wanted
        stepper.feed(slope(t, y))
    return float(stepper.y)
