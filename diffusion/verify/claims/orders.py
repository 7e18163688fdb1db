"""Claim 9: orders of convergence of the solvers, strong for the ODE's and weak for the SDE's.

With Gaussian data a solver is affine in x_T and in every draw of noise. Applied to rows in each of which one draw is 1
and the others are 0, it gives its response to every draw, and so the exact mean and variance of its samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion import config as configs, solvers
from diffusion.config import SolverConfig, VpProcess
from diffusion.gaussian import GaussianData, MixtureData
from diffusion.process.sde import Process, make_process
from diffusion.verify.claims.check import Check, convergence_order

ORDERS: tuple[tuple[SolverConfig, int], ...] = (
    (configs.Euler(clip_x0=False, denoise=False), 1),
    (configs.Ddim(clip_x0=False, denoise=False), 1),
    (configs.Heun(clip_x0=False, denoise=False), 2),
    (configs.Dpmpp2M(clip_x0=False, denoise=False, spacing="log_snr"), 2),
    (configs.Dpmpp3M(clip_x0=False, denoise=False, spacing="log_snr"), 3),
    (configs.UniPC(clip_x0=False, denoise=False, spacing="log_snr"), 3),
)
CHURNED = configs.EdmStochastic(
    clip_x0=False, denoise=False, spacing="log_snr", s_churn=10, s_min=0, s_max=1e3, s_noise=1
)
WEAK_ORDERS: tuple[tuple[SolverConfig, int], ...] = (
    (configs.EulerMaruyama(clip_x0=False, denoise=False), 1),
    (configs.Ancestral(clip_x0=False, denoise=False), 1),
    (configs.Ddim(clip_x0=False, denoise=False, eta=1.0), 1),
    (configs.Dpmpp2MSde(clip_x0=False, denoise=False), 2),
    (CHURNED, 2),
)
STARTS = torch.linspace(-2.5, 2.5, 33, dtype=torch.float64).reshape(-1, 1)
WEAK_DATA = GaussianData(0.6, 0.5)


@dataclass(frozen=True)
class FixedNoise:
    """The same given draw for every index, which makes a solver deterministic.

    Attributes:
        x: the draw, [B, ...].
    """

    x: Tensor

    def draw(self, index: int) -> Tensor:  # noqa: ARG002 - the form of `Noise`
        """The draw x, whatever the index."""
        return self.x


@dataclass(frozen=True)
class Impulses:
    """Noise of `draws` + 1 rows: draw i is 1 in row i and 0 elsewhere; the last row is always 0."""

    draws: int

    def draw(self, index: int) -> Tensor:
        """The index-th unit vector, float64 [draws + 1, 1]."""
        rows = torch.zeros(self.draws + 1, 1, dtype=torch.float64)
        rows[:-1][index] = 1
        return rows


def vp_from(t_min: float) -> Process:
    """The VP SDE of equation (12) with beta from 0.1 to 20 and its least noise at t_min."""
    whole = make_process(VpProcess())
    log_snr = float(whole.log_snr(torch.tensor(t_min, dtype=torch.float64)))
    return make_process(VpProcess(log_snr_max=log_snr))


def solver_order(quick: bool) -> Iterator[Check]:
    """Claim 9: errors at t = 0.05 from t = 1 against the ODE's exact solution and the SDE's exact moments.

    Heun and the multistep solvers take steps even in log-SNR, in which the latter are polynomials; UniPC's corrector
    adds one order.
    """
    steps = (40, 80, 160) if quick else (40, 80, 160, 320)
    exact = exact_ends()
    for config, expected in ORDERS:
        measured = convergence_order(steps, [float((sampled_ends(config, n) - exact).abs().max()) for n in steps])
        yield Check(f"{config.kind}: order of convergence", measured, expected, 0.1)
    for config, expected in WEAK_ORDERS:
        means, variances = zip(*(moment_errors(config, n) for n in steps), strict=True)
        yield Check(
            f"{config.kind}: weak order, of the variance", convergence_order(steps, list(variances)), expected, 0.1
        )
        if config.kind == "euler_maruyama":
            yield Check(f"{config.kind}: weak order, of the mean", convergence_order(steps, list(means)), expected, 0.1)
        else:  # each moves along x_0, whose estimate is exact at the mean
            yield Check(f"{config.kind}: error of the mean", max(means), 0.0, 1e-12)


def sampled_ends(config: SolverConfig, steps: int) -> Tensor:
    """The result of a probability-flow solver from `STARTS`, over t from 1 to 0.05, on mixture data."""
    denoiser = MixtureData().denoiser(vp_from(0.05))
    return solvers.solve(denoiser, FixedNoise(STARTS), config.model_copy(update={"num_steps": steps}))


def exact_ends() -> Tensor:
    """The exact solution of the ODE from `STARTS`, over t from 1 to 0.05."""
    process = vp_from(0.05)
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    return MixtureData().transport(process, STARTS, ends[:1], ends[1:])


def moment_errors(config: SolverConfig, steps: int) -> tuple[float, float]:
    """Absolute errors of mean and variance at t = 0.05 of a stochastic solver from the true p_T, on Gaussian data."""
    process = vp_from(0.05)
    mean, variance = sampled_moments(config.model_copy(update={"num_steps": steps}), process, WEAK_DATA, steps + 1)
    end = torch.tensor(process.t_min, dtype=torch.float64)
    true_mean, true_variance = process.alpha(end) * WEAK_DATA.mean, WEAK_DATA.variance_at(process, end)
    return abs(mean - float(true_mean)), abs(variance - float(true_variance))


def sampled_moments(config: SolverConfig, process: Process, data: GaussianData, draws: int) -> tuple[float, float]:
    """The exact mean and variance of a solver's samples from x_T ~ p_T, on Gaussian data.

    Args:
        config: the solver.
        process: the forward process.
        data: Gaussian data, whose exact denoiser is used.
        draws: number of draws that the solver uses, that of x_T included.
    """
    samples = solvers.solve(data.denoiser(process), Impulses(draws), config).flatten()
    without_noise, responses = samples[-1], samples[:-1] - samples[-1]
    start = torch.tensor(process.t_max, dtype=torch.float64)
    on_start = responses[0] / process.prior_std
    mean = without_noise + on_start * process.alpha(start) * data.mean
    variance = on_start**2 * data.variance_at(process, start) + responses[1:].square().sum()
    return float(mean), float(variance)
