"""Agreement with diffusers' schedulers, in float64 on the same grid, noise and network: evidence, not proof.

Their tables are float32: the tests put the same numbers in float64 there. Their array index t is our step t + 1.
"""

import numpy as np
import pytest
import torch

from diffusion.config import (
    Ancestral,
    CosineSchedule,
    Ddim,
    DdpmProcess,
    Dpmpp2M,
    Dpmpp2MSde,
    Dpmpp3M,
    Heun,
    LinearSchedule,
)
from diffusion.denoiser import Denoiser
from diffusion.gaussian import MixtureData
from diffusion.process.betas import betas
from diffusion.process.sde import Process, make_process
from diffusion.solvers import ImageNoise, solve
from diffusion.solvers.grid import time_grid
from diffusion.verify.claims.check import convergence_order
from diffusion.verify.claims.orders import STARTS, exact_ends, sampled_ends, vp_from
from diffusion.verify.claims.sampling import DoubleNoise
from diffusion.verify.mutants import MUTANTS

NOISE = DoubleNoise(ImageNoise(5, range(4), (1, 3, 5)))
SCHEDULES = {"linear": LinearSchedule(), "cosine": CosineSchedule()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
CLOSE = {"rtol": 0, "atol": 1e-9}

# DPMSolverMultistepScheduler.set_timesteps gives NumPy a torch tensor:
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def chain(schedule: str, reverse_variance: str = "beta") -> Process:
    config = {"num_train_timesteps": 100, "schedule": SCHEDULES[schedule], "reverse_variance": reverse_variance}
    return make_process(DdpmProcess(**config))


def trained_betas(schedule: str) -> np.ndarray:
    return betas(DdpmProcess(num_train_timesteps=100, schedule=SCHEDULES[schedule])).numpy()


def elementwise(process: Process) -> Denoiser:
    """Bounded where the mixture's exact x_0 estimate cancels: at alpha_T = 5e-5 of the cosine schedule."""
    return Denoiser(
        lambda x, time, label: x.clamp(-2, 2) * 0.375 + time[:, None, None, None] / 1024, process, "epsilon"
    )


def exact(process: Process) -> Denoiser:
    return MixtureData().denoiser(process)


def in_float64(scheduler, process: Process, steps: int):
    """Their scheduler on `steps` steps, with our tables in float64."""
    scheduler.set_timesteps(steps)
    t = torch.arange(1, process.num_steps + 1)
    scheduler.alphas_cumprod = process.alpha(t) ** 2
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "sigmas"):
        at = torch.exp(-process.log_snr(scheduler.timesteps.double() + 1) / 2)
        scheduler.sigmas = torch.cat([at, torch.zeros(1, dtype=torch.float64)])
    return scheduler


def reference(scheduler, x: torch.Tensor, denoiser: Denoiser, **arguments) -> torch.Tensor:
    """Run their scheduler; `draw` of `arguments` gives the noise of each step."""
    draws = arguments.pop("noise", None)
    for i, t in enumerate(scheduler.timesteps):
        epsilon = denoiser.output(x, torch.full((len(x),), float(t) + 1, dtype=torch.float64))
        given = {} if draws is None else {"variance_noise": draws.draw(i + 1)}
        x = scheduler.step(epsilon, t, x, **arguments, **given).prev_sample
    return x


@every_schedule
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("beta_tilde", "fixed_small")])
@pytest.mark.parametrize("steps", [20, 100])
def test_ancestral_agrees_with_ddpm(monkeypatch, schedule, clip, variance, theirs, steps):
    from diffusers.schedulers import scheduling_ddpm

    process = chain(schedule, variance)
    scheduler = in_float64(
        scheduling_ddpm.DDPMScheduler(
            num_train_timesteps=100, timestep_spacing="trailing", variance_type=theirs, clip_sample=clip
        ),
        process,
        steps,
    )
    # They add noise on the step to data as well, unless it begins at t = 1: its draw is 0 here.
    draws = iter([*(NOISE.draw(i) for i in range(1, steps)), torch.zeros_like(NOISE.draw(0))])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))
    denoiser = elementwise(process) if schedule == "cosine" else exact(process)
    expected = reference(scheduler, NOISE.draw(0), denoiser)
    actual = solve(denoiser, NOISE, Ancestral(num_steps=steps, clip_x0=clip))
    torch.testing.assert_close(actual, expected, **CLOSE)


@every_schedule
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 25, 100])
def test_ddim_agrees(schedule, clip, eta, steps):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    process = chain(schedule)
    scheduler = in_float64(
        DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing", clip_sample=clip), process, steps
    )
    denoiser = elementwise(process) if schedule == "cosine" else exact(process)
    expected = reference(scheduler, NOISE.draw(0), denoiser, noise=NOISE, eta=eta, use_clipped_model_output=True)
    actual = solve(denoiser, NOISE, Ddim(num_steps=steps, eta=eta, clip_x0=clip))
    torch.testing.assert_close(actual, expected, **CLOSE)


class InDouble:
    """torch.float32 as they name it in `step`, where float64 is meant."""

    def __init__(self, torch_module):
        self._torch = torch_module

    def __getattr__(self, name):
        return self._torch.float64 if name == "float32" else getattr(self._torch, name)


def multistep(monkeypatch, process: Process, steps: int, solver_order: int, **options):
    """DPM-Solver++ in float64: their `step` casts x to float32, to raise half precision."""
    from diffusers.schedulers import scheduling_dpmsolver_multistep

    scheduler = scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler(
        num_train_timesteps=process.num_steps,
        timestep_spacing="trailing",
        solver_order=solver_order,
        lower_order_final=False,
        **options,
    )
    scheduler = in_float64(scheduler, process, steps)
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", InDouble(torch))
    return scheduler


@every_schedule
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [4, 10, 30])
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_dpmpp_2m_and_its_sde_agree(monkeypatch, schedule, clip, steps, kind):
    process = chain(schedule)
    clipping = {"thresholding": clip, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}
    algorithm = {"ode": "dpmsolver++", "sde": "sde-dpmsolver++"}[kind]
    scheduler = multistep(monkeypatch, process, steps, 2, algorithm_type=algorithm, **clipping)
    denoiser = elementwise(process) if schedule == "cosine" else exact(process)
    expected = reference(scheduler, NOISE.draw(0), denoiser, noise=NOISE)
    config = (Dpmpp2M if kind == "ode" else Dpmpp2MSde)(num_steps=steps, clip_x0=clip)
    assert time_grid(process, steps, config)[:-1].tolist() == [int(t) + 1 for t in scheduler.timesteps]
    torch.testing.assert_close(solve(denoiser, NOISE, config), expected, **CLOSE)


@every_schedule
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [5, 20])
def test_heun_agrees(schedule, clip, steps):
    """Theirs moves y = x / alpha_t."""
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    process = chain(schedule)
    scheduler = HeunDiscreteScheduler(
        num_train_timesteps=100, trained_betas=trained_betas(schedule), timestep_spacing="trailing", clip_sample=clip
    )
    scheduler.set_timesteps(steps)
    t = scheduler.timesteps.double() + 1
    edm_sigma = torch.exp(-process.log_snr(t) / 2)
    scheduler.sigmas = torch.cat([edm_sigma, torch.zeros(1, dtype=torch.float64)])
    denoiser = elementwise(process) if schedule == "cosine" else exact(process)
    y = NOISE.draw(0) / process.alpha(t[0])
    for at, index in zip(t, scheduler.timesteps, strict=True):
        epsilon = denoiser.output(process.alpha(at) * y, at.expand(len(y)))
        y = scheduler.step(epsilon, index, y, return_dict=False)[0]
    actual = solve(denoiser, NOISE, Heun(num_steps=steps, clip_x0=clip, spacing="uniform"))
    torch.testing.assert_close(actual, y, **CLOSE)


def library_ends(monkeypatch, steps: int, solver_order: int, **options) -> torch.Tensor:
    """DPM-Solver++ of the library where claim 9 runs ours: 33 starts, steps even in log-SNR, data a mixture."""
    process = vp_from(0.05)
    # sigma_min: the last step is no step to data
    scheduler = multistep(monkeypatch, process, steps, solver_order, final_sigmas_type="sigma_min", **options)
    times = time_grid(process, steps, Dpmpp3M(denoise=False, spacing="log_snr"))
    scheduler.sigmas = torch.exp(-process.log_snr(times) / 2)
    x, denoiser = STARTS[:, :, None, None], MixtureData().denoiser(process)
    for t, index in zip(times, scheduler.timesteps, strict=False):
        x = scheduler.step(denoiser.output(x, t.expand(len(x))), index, x, return_dict=False)[0]
    return x.flatten(1)


def errors(steps: tuple[int, ...], ends) -> list[float]:
    exact = exact_ends()
    return [float((ends(n) - exact).abs().max()) for n in steps]


@pytest.mark.parametrize(
    ("config", "theirs"),
    [pytest.param(Dpmpp2M(), 2, id="2M"), pytest.param(Dpmpp3M(), 2, id="3M", marks=pytest.mark.slow)],
)
def test_the_librarys_third_order_solver_has_order_two(monkeypatch, config, theirs):
    """Agreement with it would be no proof: its D_2 is h^2 x_0'' / 2 and takes phi_3 / h^2 without a factor 2."""
    steps, ours = (80, 160, 320), 2 if config.kind == "dpmpp_2m" else 3
    config = config.model_copy(update={"clip_x0": False, "denoise": False, "spacing": "log_snr"})
    actual = errors(steps, lambda n: library_ends(monkeypatch, n, solver_order=ours))
    assert convergence_order(steps, actual) == pytest.approx(theirs, abs=0.1)
    assert convergence_order(steps, errors(steps, lambda n: sampled_ends(config, n))) == pytest.approx(ours, abs=0.1)


def test_the_librarys_third_order_solver_is_ours_with_that_fault(monkeypatch):
    config = Dpmpp3M(clip_x0=False, denoise=False, spacing="log_snr")
    theirs = library_ends(monkeypatch, 40, solver_order=3, solver_type="heun")  # of its second step
    with MUTANTS["dpmpp-3m-half-curvature"].applied():
        torch.testing.assert_close(sampled_ends(config, 40), theirs, rtol=0, atol=1e-9)
