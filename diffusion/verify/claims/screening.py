"""Claim 17: the bounds screened from a denoising curve equal those computed without it.

The curve is that of a wrong denoiser on two levels, in closed form, so that nothing is random: with x_0 = m + d,
E ||eps - eps_theta||^2 = D (1 - sigma^2 / w)^2 + sigma^2 alpha^2 ||d||^2 / w^2, w = alpha^2 variance + sigma^2.
"""

import math
from collections.abc import Iterator

import torch

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    GeometricSchedule,
    LinearSchedule,
    ProcessConfig,
    QuadraticSchedule,
    VpProcess,
)
from diffusion.likelihood.discrete import ReverseKernel, bits_per_dim, prior_kl
from diffusion.likelihood.screening import DenoisingCurve, Estimate, screen
from diffusion.process.sde import Process, make_process
from diffusion.verify.claims.check import Check
from diffusion.verify.claims.likelihoods import ASSUMED_DATA, TWO_LEVELS, corner_mean, nodes

X_0 = TWO_LEVELS.reshape(1, -1)
PROCESSES: dict[str, ProcessConfig] = {
    "linear-100, beta": DdpmProcess(num_train_timesteps=100, schedule=LinearSchedule()),
    "cosine-100, beta": DdpmProcess(num_train_timesteps=100, schedule=CosineSchedule()),
    "quadratic-100, beta-tilde": DdpmProcess(
        num_train_timesteps=100, schedule=QuadraticSchedule(), reverse_variance="beta_tilde"
    ),
    "vp, geometric, 100 steps": VpProcess(num_train_timesteps=100, schedule=GeometricSchedule()),
}


def screened_bounds(quick: bool) -> Iterator[Check]:
    """Claim 17: the sum over steps, the terms of the continuous bound, and the fall of the gap between fixed ends."""
    curve = _curve(3000 if quick else 6000)
    for name, config in PROCESSES.items():
        process = make_process(config)
        result = screen(curve, process)
        yield Check(f"{name}: diffusion term, bits", result.diffusion.value - _steps(process), 0.0, 1e-5)
        yield Check(f"{name}: prior + integral, bits", result.continuous_vlb.value - _integral(process), 0.0, 1e-5)
    gaps = [_gap(curve, steps).value for steps in (400, 800)]
    yield Check("gap at T = 400 / gap at 800, between fixed ends", gaps[0] / gaps[1], 2.0, 0.02)


def _curve(points: int) -> DenoisingCurve:
    """Two equal groups without reconstruction term; since nothing is clipped, the error of x_0 is that of eps / SNR."""
    log_snr = torch.linspace(13.4, -20.0, points, dtype=torch.float64)
    a, v = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
    total = a * ASSUMED_DATA.variance + v
    distance = (X_0 - ASSUMED_DATA.mean).square().sum()
    error = X_0.numel() * (1 - v / total) ** 2 + a * v * distance / total**2
    return DenoisingCurve(
        log_snr=log_snr,
        mse=error.repeat(2, 1),
        x0_mse=(error / log_snr.exp()).repeat(2, 1),
        second_moment=float(X_0.square().sum()),
        reconstruction=torch.zeros_like(log_snr),
        dimensions=X_0.numel(),
        package_sha256="0" * 64,
        dataset_fingerprint="0" * 64,
        images=2,
    )


def _steps(process: Process) -> float:
    """The sum of L_{t-1} over t = 2..T computed as the bound does, bits/dim."""
    kernel = ReverseKernel(ASSUMED_DATA.denoiser(process), clip_x0=False)
    index = torch.arange(2, process.num_steps + 1)
    x_0 = X_0.expand(len(index), -1)
    corners = [kernel.diffusion_kl(x_0, index, torch.full_like(x_0, sign)).sum() for sign in (-1, 1)]
    return float(bits_per_dim(sum(corners, torch.zeros(1, dtype=torch.float64)) / 2, X_0.numel()))


def _integral(process: Process) -> float:
    """The continuous bound's prior and diffusion terms from its rate over t, bits/dim; nodes even in log-SNR."""
    high, low = (float(end) for end in process.log_snr(torch.tensor([process.t_min, process.t_max]).double()))
    log_snr, weights = nodes(low, high, 200)
    t = process.time(log_snr)
    rate = corner_mean(ASSUMED_DATA.denoiser(process), X_0, t)
    nats = prior_kl(process, X_0) + (weights / -process.dlogsnr_dt(t) * rate).sum()
    return float(nats) / (math.log(2) * X_0.numel())


def _gap(curve: DenoisingCurve, steps: int) -> Estimate:
    ends = {"log_snr_max": 9.0, "log_snr_min": -9.0}
    config = VpProcess.model_validate({"num_train_timesteps": steps, "schedule": GeometricSchedule(), **ends})
    return screen(curve, make_process(config)).gap
