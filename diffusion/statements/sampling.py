"""Statements 9, 11 and 14: the solvers' orders, which of them are the same, and the Langevin corrector."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion import config as configs
from diffusion import solvers
from diffusion.config import DdpmProcess, SolverConfig, VpProcess
from diffusion.gaussian import MixtureData
from diffusion.sde import Process, make_process
from diffusion.statements.check import Check, order

ORDERS: tuple[tuple[SolverConfig, int], ...] = (
    (configs.Euler(clip_x0=False, denoise=False), 1),
    (configs.Ddim(clip_x0=False, denoise=False), 1),
    (configs.Heun(clip_x0=False, denoise=False), 2),
    (configs.Dpmpp2M(clip_x0=False, denoise=False, spacing="log_snr"), 2),
    (configs.Dpmpp3M(clip_x0=False, denoise=False, spacing="log_snr"), 3),
    (configs.UniPC(clip_x0=False, denoise=False, spacing="log_snr"), 3),
)


@dataclass(frozen=True)
class FixedNoise:
    """The same given draws, whatever their index: a start without randomness."""

    x: Tensor

    def draw(self, index: int) -> Tensor:  # noqa: ARG002 - the form of `Noise`
        """x, always."""
        return self.x


def vp_from(t_min: float) -> Process:
    """The VP SDE of equation (12), beta from 0.1 to 20, its least noise at t_min."""
    whole = make_process(VpProcess())
    log_snr = float(whole.log_snr(torch.tensor(t_min, dtype=torch.float64)))
    return make_process(VpProcess(log_snr_max=log_snr))


def solver_order(quick: bool) -> Iterator[Check]:
    """Statement 9: errors at t = 0.05 from t = 1 against the ODE's exact solution, on a mixture.

    Multistep solvers take steps even in log-SNR, in which they are polynomials; UniPC's corrector adds one order.
    """
    steps = (40, 80, 160) if quick else (40, 80, 160, 320)
    for config, expected in ORDERS:
        found = order(steps, [ode_error(config, n) for n in steps])
        yield Check(f"{config.kind}: order of convergence", found, expected, 0.1)


def ode_error(config: SolverConfig, steps: int) -> float:
    """The largest error over 33 starting points of a probability-flow solver on [0.05, 1]."""
    data, process = MixtureData(), vp_from(0.05)
    start = torch.linspace(-2.5, 2.5, 33, dtype=torch.float64).reshape(-1, 1)
    found = solvers.solve(data.denoiser(process), FixedNoise(start), config.model_copy(update={"num_steps": steps}))
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    return float((found - data.transport(process, start, ends[:1], ends[1:])).abs().max())


def equal_samplers(quick: bool) -> Iterator[Check]:
    """Statement 11: DDIM at eta = 1 is ancestral with beta-tilde; at eta = 0 its step is DPM-Solver-1's."""
    process = make_process(DdpmProcess(num_train_timesteps=100, reverse_variance="beta_tilde"))
    denoiser, steps = MixtureData().denoiser(process), 10 if quick else 100
    noise = DoubleNoise(solvers.ImageNoise(0, range(8), (1, 1, 1)))
    results = [
        solvers.solve(denoiser, noise, config)
        for config in (
            configs.Ancestral(num_steps=steps, clip_x0=False),
            configs.Ddim(num_steps=steps, eta=1.0, clip_x0=False),
        )
    ]
    difference = float((results[0] - results[1]).abs().max())
    yield Check(f"ancestral (beta-tilde) - DDIM (eta = 1) over {steps} steps", difference, 0.0, 1e-12)
    ends = [
        solvers.solve(denoiser, noise, config)
        for config in (
            configs.Ddim(num_steps=1, clip_x0=False, denoise=False),
            configs.Dpmpp2M(num_steps=1, clip_x0=False, denoise=False),
        )
    ]
    yield Check("DDIM (eta = 0) - DPM-Solver-1, one step", float((ends[0] - ends[1]).abs().max()), 0.0, 1e-12)


@dataclass(frozen=True)
class DoubleNoise:
    """Another noise in float64."""

    noise: solvers.Noise

    def draw(self, index: int) -> Tensor:
        """The draw, float64."""
        return self.noise.draw(index).double()
