"""Solvers: order of convergence on an exact score, identities among them, independence of rows, and other libraries."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.chain import posterior
from diffusion.config import Ancestral, CosineSchedule, Ddim, Dpmpp2M, LinearSchedule, ProcessConfig
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData, MixtureData, vp_schedule
from diffusion.schedule import Schedule, betas
from diffusion.solvers import ImageNoise, Solver, make_solver, solve
from diffusion.solvers.base import time_grid

COSINE = Schedule.from_config(ProcessConfig(num_train_timesteps=100))
EVERY_SOLVER = [
    Ancestral(num_steps=20),
    Ddim(num_steps=20),
    Ddim(num_steps=20, eta=0.7),
    Ddim(num_steps=20, eta=1.0, clip_x0=False),
    Dpmpp2M(num_steps=20),
    Dpmpp2M(num_steps=20, clip_x0=False),
]
every_solver = pytest.mark.parametrize(
    "config", EVERY_SOLVER, ids=lambda c: f"{c.kind}-{getattr(c, 'eta', '')}-{c.clip_x0}"
)


def noise(images=range(4), shape=(1, 3, 5), seed=5) -> ImageNoise:
    return ImageNoise(seed, list(images), shape)


def drive(solver: Solver, denoiser: Denoiser, until: int = 0) -> torch.Tensor:
    """Run a solver until its next evaluation would be at step `until`."""
    while (query := solver.want()) is not None and int(query.t[0]) > until:
        solver.feed(denoiser.epsilon(query.x, query.t))
    return solver.x


def elementwise(schedule: Schedule) -> Denoiser:
    """A network of exactly rounded elementwise operations, so that any dependence on other rows is the solver's."""
    return Denoiser(lambda x, t: x.clamp(-2, 2) * 0.375 + t[:, None, None, None] * 2.0**-10, schedule, "epsilon")


def ode_error(config: Ddim | Dpmpp2M, steps: int) -> float:
    """Largest error at t = 0.05 after `steps` even steps from t = 1, on a mixture's exact score, in float64."""
    data, schedule = MixtureData(), vp_schedule(steps)
    start = torch.linspace(-2.5, 2.5, 33, dtype=torch.float64).reshape(-1, 1)
    solver = make_solver(config.model_copy(update={"num_steps": schedule.num_steps}), schedule, noise(range(33), (1,)))
    solver.x = start
    found = drive(solver, data.denoiser(schedule), until=1)
    return float((found - data.transport(schedule, start, schedule.num_steps, 1)).abs().max())


@pytest.mark.parametrize(
    ("config", "order"), [(Ddim(clip_x0=False), 1), (Dpmpp2M(clip_x0=False), 2)], ids=["ddim", "dpmpp_2m"]
)
def test_order_of_convergence_on_an_exact_mixture_score(config, order):
    """Statement 9: N = 40..320, t in [0.05, 1]; the reference is the ODE's exact solution, by quantiles."""
    steps = (40, 80, 160, 320)
    errors = [ode_error(config, n) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.1)


def test_ddim_and_dpmpp_take_the_same_first_step():
    """DDIM (eta = 0) is DPM-Solver-1: statement 11."""
    denoiser = elementwise(COSINE)
    first = [
        drive(make_solver(config(num_steps=5, clip_x0=False), COSINE, noise()), denoiser, until=80)
        for config in (Ddim, Dpmpp2M)
    ]
    torch.testing.assert_close(first[0], first[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_at_eta_1_is_ancestral_with_beta_tilde_on_the_same_noise(steps, clip):
    results = []
    for config in (Ancestral(num_steps=steps, clip_x0=clip), Ddim(num_steps=steps, eta=1.0, clip_x0=clip)):
        solver = make_solver(config, COSINE, noise(), "beta_tilde")
        solver.x = solver.x.double()
        results.append(drive(solver, MixtureData().denoiser(COSINE)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


class Impulses(ImageNoise):
    """Noise whose draw k is 1 in row k and 0 elsewhere: an affine solver's rows are then its response to each draw."""

    def draw(self, index: int) -> torch.Tensor:
        return torch.eye(len(self.images), dtype=torch.float64)[index].reshape(-1, 1)


@pytest.mark.parametrize("steps", [40, 8])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_ancestral_has_exactly_the_moments_of_the_reverse_chain(variance, steps):
    """Gaussian data make each step affine: mean and variance follow a closed recursion, without Monte Carlo."""
    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=40))
    data = GaussianData(0.3, 0.2)
    solver = make_solver(
        Ancestral(num_steps=steps, clip_x0=False), schedule, Impulses(0, range(steps + 1), (1, 1, 1)), variance
    )
    rows = drive(solver, data.denoiser(schedule)).flatten()
    silent = rows[-1]  # draw number `steps` would be the noise of the last step, which has none
    mean, var = 0.0, 1.0
    for t, s in pairwise(solver.grid):
        at_s, at_t = torch.tensor([s]), torch.tensor([t])
        q = posterior(schedule, at_s, at_t)
        gain = data.variance * float(schedule.alpha[t]) / float(data.variance_at(schedule, at_t))
        slope = float(q.coef_x_t) + float(q.coef_x_0) * gain
        mean = slope * mean + float(q.coef_x_0) * (1 - gain * float(schedule.alpha[t])) * data.mean
        added = float(schedule.transition_variance(at_s, at_t)) if variance == "beta" else float(q.variance)
        var = slope**2 * var + (added if s else 0.0)
    assert float(silent) == pytest.approx(mean, rel=1e-10)
    assert float((rows - silent).square().sum()) == pytest.approx(var, rel=1e-9)


@every_solver
def test_an_image_alone_is_bitwise_the_image_in_any_batch_and_any_place(config):
    denoiser = elementwise(COSINE)

    def images(numbers):
        return solve(denoiser, make_solver(config, COSINE, noise(numbers)))

    together = images([3, 0, 7, 2**40, 1])
    for row, number in enumerate([3, 0, 7, 2**40, 1]):
        assert torch.equal(images([number])[0], together[row])
    assert torch.equal(images([7, 3]), together[[2, 0]])


@every_solver
def test_the_same_seed_gives_the_same_images_and_another_seed_others(config):
    denoiser = elementwise(COSINE)
    first, again, other = (solve(denoiser, make_solver(config, COSINE, noise(seed=seed))) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_solver
def test_a_perfect_denoiser_of_one_image_returns_it(config):
    image = torch.linspace(-0.9, 0.9, 15).reshape(1, 1, 3, 5)

    def epsilon(x, t):
        return (x - COSINE.alpha[t].float()[:, None, None, None] * image) / COSINE.sigma[t].float()[:, None, None, None]

    found = solve(Denoiser(epsilon, COSINE, "epsilon"), make_solver(config, COSINE, noise()))
    torch.testing.assert_close(found, image.expand(4, -1, -1, -1), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "config", [Ancestral(num_steps=10), Ddim(num_steps=10), Dpmpp2M(num_steps=10)], ids=lambda c: c.kind
)
def test_clipping_holds_every_image_in_range_where_the_network_is_wild(config):
    wild = Denoiser(lambda x, t: torch.full_like(x, 30.0), COSINE, "epsilon")
    clipped = solve(wild, make_solver(config, COSINE, noise()))
    assert float(clipped.abs().max()) <= 1 + 1e-5
    free = solve(wild, make_solver(config.model_copy(update={"clip_x0": False}), COSINE, noise()))
    assert float(free.abs().max()) > 10


@given(st.integers(2, 2000), st.data())
@settings(deadline=None)
def test_the_grid_falls_strictly_from_t_to_zero(num_train, data):
    steps = data.draw(st.integers(1, num_train))
    grid = time_grid(num_train, steps)
    assert (grid[0], grid[-1], len(grid)) == (num_train, 0, steps + 1)
    assert all(a > b for a, b in pairwise(grid))
    assert max(abs(t - num_train * (1 - i / steps)) for i, t in enumerate(grid)) <= 0.5 + 1e-9


@pytest.mark.parametrize("steps", [0, 101])
def test_more_steps_than_the_chain_has_are_refused(steps):
    with pytest.raises(ValueError, match=f"solver.num_steps = {steps}; allowed: 1 to num_train_timesteps = 100"):
        make_solver(Ddim.model_construct(num_steps=steps, eta=0.0, clip_x0=True), COSINE, noise())


def test_want_follows_the_grid_and_ends():
    solver, seen = make_solver(Ddim(num_steps=4), COSINE, noise()), []
    while (query := solver.want()) is not None:
        assert torch.equal(query.x, solver.x)
        seen.append(query.t.tolist())
        solver.feed(torch.zeros_like(query.x))
    assert seen == [[t] * 4 for t in (100, 75, 50, 25)]
    assert solver.want() is None


def trained_betas(schedule_config) -> np.ndarray:
    return betas(ProcessConfig(num_train_timesteps=100, schedule=schedule_config)).numpy()


def reference(scheduler, steps: int, x: torch.Tensor, denoiser: Denoiser, **arguments) -> torch.Tensor:
    """Run a diffusers scheduler; its array index t is our step t + 1."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        eps = denoiser.epsilon(x, torch.full((len(x),), int(t) + 1))
        x = scheduler.step(eps, t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("schedule_config", [LinearSchedule(), CosineSchedule()], ids=lambda c: c.kind)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [10, 25, 100])
def test_ddim_agrees_with_diffusers(schedule_config, clip, steps):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=100, schedule=schedule_config))
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        trained_betas=trained_betas(schedule_config),
        timestep_spacing="trailing",
        clip_sample=clip,
    )
    denoiser, start = MixtureData().denoiser(schedule), noise()
    expected = reference(scheduler, steps, start.draw(0), denoiser, eta=0.0, use_clipped_model_output=True)
    found = solve(denoiser, make_solver(Ddim(num_steps=steps, clip_x0=clip), schedule, start))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 100])
def test_stochastic_ddim_agrees_with_diffusers_on_the_same_noise(eta, steps):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=100, schedule=LinearSchedule()))
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        trained_betas=trained_betas(LinearSchedule()),
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    denoiser, start = MixtureData().denoiser(schedule), noise()
    expected = start.draw(0)
    for draw, t in enumerate(scheduler.timesteps, start=1):
        eps = denoiser.epsilon(expected, torch.full((len(expected),), int(t) + 1))
        expected = scheduler.step(eps, int(t), expected, eta=eta, variance_noise=start.draw(draw), return_dict=False)[0]
    found = solve(denoiser, make_solver(Ddim(num_steps=steps, eta=eta, clip_x0=False), schedule, start))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)  # diffusers
@pytest.mark.parametrize(
    ("schedule_config", "clip", "network"),
    [
        (LinearSchedule(), False, MixtureData().denoiser),
        (LinearSchedule(), True, elementwise),
        # (x - sigma eps) / alpha_T cancels in a mixture's exact score: both libraries then lose 3e-5 on the cosine
        (CosineSchedule(), True, elementwise),
    ],
    ids=["linear", "linear-clipped", "cosine-clipped"],
)
@pytest.mark.parametrize("steps", [4, 10, 30])
def test_dpmpp_2m_agrees_with_diffusers(schedule_config, clip, network, steps):
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=100, schedule=schedule_config))
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        trained_betas=trained_betas(schedule_config),
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
        thresholding=clip,
        dynamic_thresholding_ratio=1.0,
        sample_max_value=1.0,
    )
    denoiser, start = network(schedule), noise()
    expected = reference(scheduler, steps, start.draw(0), denoiser)
    found = solve(denoiser, make_solver(Dpmpp2M(num_steps=steps, clip_x0=clip), schedule, start))
    assert time_grid(100, steps)[:-1] == [int(t) + 1 for t in scheduler.timesteps]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("beta_tilde", "fixed_small")])
@pytest.mark.parametrize("clip", [True, False])
def test_ancestral_agrees_with_diffusers_on_the_same_noise(monkeypatch, variance, theirs, clip):
    from diffusers.schedulers import scheduling_ddpm
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=100))
    scheduler = DDPMScheduler(
        num_train_timesteps=100,
        trained_betas=trained_betas(CosineSchedule()),
        timestep_spacing="trailing",
        variance_type=theirs,
        clip_sample=clip,
    )
    start = noise()
    draws = iter(range(1, 101))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: start.draw(next(draws)))
    denoiser = MixtureData().denoiser(schedule)
    expected = reference(scheduler, 100, start.draw(0), denoiser)
    found = solve(denoiser, make_solver(Ancestral(num_steps=100, clip_x0=clip), schedule, start, variance))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
