"""Solvers: rows that do not depend on others, the want and feed machine, the laws they sample, and their limits.

Orders of convergence and identities among solvers are claims 9, 11 and 14 (`test_verify.py`).
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad

from diffusion import prediction
from diffusion.config import (
    Ancestral,
    ClassifierFree,
    Ddim,
    DdpmProcess,
    Dpmpp2M,
    Dpmpp2MSde,
    Dpmpp3M,
    EdmStochastic,
    Euler,
    EulerMaruyama,
    GeometricSchedule,
    Heun,
    LearnedSchedule,
    LinearSchedule,
    PredictorCorrector,
    Rk45,
    SolverConfig,
    SubVpProcess,
    UniPC,
    VeProcess,
    VpProcess,
)
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData, MixtureData
from diffusion.process import kernels as chain
from diffusion.process.sde import Chain, make_process
from diffusion.solvers import ImageNoise, autoguided, make_solver, predictor_corrector, solve
from diffusion.solvers.dpmpp_3m import integral
from diffusion.solvers.grid import time_grid
from diffusion.solvers.unipc import change
from diffusion.tensors import expand_to
from diffusion.verify.claims.check import convergence_order
from diffusion.verify.claims.orders import FixedNoise, exact_ends, sampled_ends, sampled_moments
from diffusion.verify.claims.sampling import DoubleNoise

PROCESSES = {
    "ddpm": make_process(DdpmProcess(num_train_timesteps=100, schedule=LinearSchedule())),
    "vp": make_process(VpProcess()),
    "sub_vp": make_process(SubVpProcess()),
    "ve": make_process(VeProcess()),
}
# Ends that 90 steps reach evenly in time: a multistep solver cannot extrapolate over a last step of any length.
NEAR = {
    "ddpm": PROCESSES["ddpm"],
    "vp": make_process(VpProcess(log_snr_max=7)),
    "sub_vp": make_process(SubVpProcess(log_snr_max=7)),
    "ve": make_process(VeProcess(log_snr_max=7, log_snr_min=-5)),
}
SPACINGS = ("uniform", "log_snr", "karras")
ODE = (
    Ddim(num_steps=12),
    Euler(num_steps=12),
    Heun(num_steps=12),
    Dpmpp2M(num_steps=12),
    Dpmpp3M(num_steps=12),
    UniPC(num_steps=12, order=3),
)
SDE = (
    Ancestral(num_steps=12),
    Ddim(num_steps=12, eta=0.7),
    EulerMaruyama(num_steps=12),
    PredictorCorrector(num_steps=12, corrector_steps=2),
    EdmStochastic(num_steps=12, s_max=50.0),
    Dpmpp2MSde(num_steps=12),
)
GRID = (*ODE, *SDE)
EVERY = (*GRID, Rk45())


def named(config) -> str:
    return config.kind + ("-stochastic" if getattr(config, "eta", 0) else "")


every_solver = pytest.mark.parametrize("config", EVERY, ids=named)
grid_solver = pytest.mark.parametrize("config", GRID, ids=named)
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
near_process = pytest.mark.parametrize("process", NEAR.values(), ids=NEAR)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)


def changed(config, **changes):
    return config.model_copy(update=changes)


def noise(images=range(4), shape=(1, 3, 5), seed=5) -> DoubleNoise:
    return DoubleNoise(ImageNoise(seed, list(images), shape))


def elementwise(process) -> Denoiser:
    """A labelled network of exactly rounded elementwise operations: a dependence on other rows is the solver's."""

    def network(x, time, label):
        at = expand_to(time / process.num_steps + label.double() / 8, x)
        return x.clamp(-2, 2) * 0.375 + at * 0.25

    return Denoiser(network, process, "epsilon", null_label=3)


# Rows


@every_process
@every_solver
def test_an_image_alone_is_bitwise_the_image_in_any_batch_and_any_place(process, config):
    denoiser, numbers = elementwise(process), [3, 0, 7, 2**40, 1]

    def images(of):
        return solve(denoiser, noise(of), config, torch.tensor([number % 3 for number in of]))

    together = images(numbers)
    assert together.isfinite().all()
    for row, number in enumerate(numbers):
        assert torch.equal(images([number])[0], together[row])
    assert torch.equal(images([7, 3]), together[[2, 0]])


@pytest.mark.parametrize("layout", ["contiguous", "half of the channels"])
def test_a_large_row_has_the_same_corrector_step_in_any_batch_on_several_threads(layout):
    """torch.sum adds a row of 49152 numbers in another order where it is the only one."""
    score, z = torch.randn(2, 9, 6, 128, 128, generator=torch.Generator().manual_seed(0))
    if layout == "contiguous":
        score, z = score[:, :3].contiguous(), z[:, :3].contiguous()
    else:
        score, z = score.chunk(2, dim=1)[0], z.chunk(2, dim=1)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = predictor_corrector.step_sizes(score, z, 0.16)
        alone = [predictor_corrector.step_sizes(score[i : i + 1], z[i : i + 1], 0.16) for i in range(9)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone), together)
    expected = 2 * 0.16**2 * z.double().square().sum((1, 2, 3)) / score.double().square().sum((1, 2, 3))
    torch.testing.assert_close(together.double(), expected, rtol=1e-6, atol=0)


@every_solver
def test_the_same_seed_gives_the_same_images_and_another_seed_others(config):
    denoiser = elementwise(PROCESSES["vp"])
    first, again, other = (solve(denoiser, noise(seed=seed), config) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@dataclass
class Spy:
    """A noise that remembers which draws it was asked for."""

    asked: list[int] = field(default_factory=list)

    def draw(self, index):
        self.asked.append(index)
        return noise().draw(index)


@every_solver
def test_no_draw_is_used_twice_and_only_stochastic_solvers_use_more_than_the_start(config):
    spy = Spy()
    solve(elementwise(PROCESSES["vp"]), spy, config)
    assert spy.asked[0] == 0
    assert len(set(spy.asked)) == len(spy.asked)
    assert (len(spy.asked) > 1) == (config in SDE)


# The machine


@every_solver
def test_want_is_idempotent_and_solve_is_a_loop_of_want_and_feed(config):
    denoiser, label = elementwise(PROCESSES["ddpm"]), torch.tensor([0, 1, 2, 1])
    solver = make_solver(config, denoiser, noise(), label)
    while (query := solver.want()) is not None:
        again = solver.want()
        assert again is not None
        assert torch.equal(query.x, again.x)
        assert torch.equal(query.t, again.t)
        assert query.label is not None
        assert query.t.dtype == torch.float64
        assert query.t.shape == query.label.shape == (len(query.x),)
        solver.feed(denoiser.output(query.x, query.t, query.label))
    assert solver.want() is None
    assert torch.equal(solver.x, solve(denoiser, noise(), config, label))
    with pytest.raises(AssertionError, match="nothing was wanted"):
        solver.feed(solver.x)


def test_feed_before_want_is_refused():
    with pytest.raises(AssertionError, match="want\\(\\) comes before feed"):
        make_solver(Ddim(), elementwise(PROCESSES["vp"]), noise()).feed(torch.zeros(4, 1, 3, 5))


@grid_solver
def test_labels_go_with_all_rows(config):
    solver, label = make_solver(config, elementwise(PROCESSES["vp"]), noise(), torch.tensor([2, 0, 1, 2])), []
    while (query := solver.want()) is not None:
        assert query.label is not None
        label.append(query.label.tolist())
        solver.feed(query.x)
    assert label == [[2, 0, 1, 2]] * len(label)


def test_rk45_asks_for_unfinished_rows_alone_with_their_own_labels():
    """Row i starts at i and has the label i; labels make rows differ in difficulty."""
    process = PROCESSES["vp"]

    def network(x, time, label):
        return torch.sin(x * expand_to(3.0**label, x))

    denoiser = Denoiser(network, process, "epsilon", null_label=9)
    start = torch.arange(4, dtype=torch.float64).reshape(4, 1)
    solver, asked = make_solver(Rk45(denoise=False), denoiser, FixedNoise(start), torch.arange(4)), []
    while (query := solver.want()) is not None:
        assert query.label is not None
        asked.append(query.label.tolist())
        solver.feed(denoiser.output(query.x, query.t, query.label))
    assert asked[0] == [0, 1, 2, 3]
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(asked))
    assert len(asked[-1]) < 4
    without = make_solver(Rk45(), elementwise(process), noise())
    query = without.want()
    assert query is not None
    assert query.label is None


@pytest.mark.parametrize("config", [c for c in EVERY if c.kind != "ancestral"], ids=named)
def test_a_network_that_also_gives_the_variance_is_read_by_its_first_half(config):
    plain = elementwise(PROCESSES["ddpm"])
    learned = Chain(1 - torch.exp(torch.diff(torch.log(PROCESSES["ddpm"].alpha(torch.arange(101)) ** 2))), "learned")

    def network(x, time, label):
        return torch.cat([plain.network(x, time, label), torch.full_like(x, 77.0)], dim=1)

    actual = solve(Denoiser(network, learned, "epsilon", null_label=3), noise(), config)
    torch.testing.assert_close(actual, solve(plain, noise(), config), rtol=1e-9, atol=1e-9)


EXTRA = {"heun": 2, "edm_stochastic": 2, "predictor_corrector": 3}


@every_process
@every_spacing
@grid_solver
@pytest.mark.parametrize("denoise", [True, False])
def test_evaluations_of_a_step(process, spacing, config, denoise):
    """Heun's two and the corrector's own are for every step but the one to data."""
    config = changed(config, num_steps=5, spacing=spacing, denoise=denoise)
    solver, times = make_solver(config, elementwise(process), noise()), []
    while (query := solver.want()) is not None:
        times.append(float(query.t[0]))
        solver.feed(query.x)
    a_step = EXTRA.get(config.kind, 1)
    assert len(times) == (4 * a_step + 1 if denoise else 5 * a_step)
    grid = time_grid(process, 5, config).tolist()
    assert (grid[0], grid[-1]) == (process.t_max, 0.0 if denoise else process.t_min)
    if config.kind != "edm_stochastic":
        assert sorted(set(times), reverse=True) == grid[:-1] + ([] if denoise or a_step == 1 else grid[-1:])


# What they sample


BOUND = {"euler": 0.1, "ddim": 0.03, "heun": 2e-3, "dpmpp_2m": 2e-3, "dpmpp_3m": 2e-4, "unipc": 6e-5}
MULTISTEP_EVEN_IN_TIME = 0.01


@near_process
@every_spacing
@pytest.mark.parametrize("config", ODE, ids=named)
def test_the_flow_ends_at_the_quantile_where_it_began(process, spacing, config):
    data, count = MixtureData(), 90
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    config = changed(config, num_steps=count, spacing=spacing, clip_x0=False, denoise=False)
    actual = solve(data.denoiser(process), FixedNoise(start), config)
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    exact = data.transport(process, process.prior_std * start, ends[:1], ends[1:])
    even = spacing == "uniform" and config.kind in {"dpmpp_2m", "dpmpp_3m", "unipc"}
    assert float((actual - exact).abs().max()) < (MULTISTEP_EVEN_IN_TIME if even else BOUND[config.kind])


@near_process
@pytest.mark.parametrize("rtol", [1e-6, 1e-8])
def test_rk45_is_as_exact_as_it_is_asked_to_be(process, rtol):
    data = MixtureData()
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    actual = solve(data.denoiser(process), FixedNoise(start), Rk45(rtol=rtol, atol=rtol, clip_x0=False, denoise=False))
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    exact = data.transport(process, process.prior_std * start, ends[:1], ends[1:])
    assert float((actual - exact).abs().max()) < 10 * rtol


@near_process
@every_spacing
@pytest.mark.parametrize("config", [c for c in SDE if c.kind != "predictor_corrector"], ids=named)
def test_the_exact_moments_of_what_a_stochastic_solver_samples(process, spacing, config):
    data, steps = GaussianData(0.3, 0.25), 90
    config = changed(config, num_steps=steps, spacing=spacing, clip_x0=False, denoise=False)
    mean, variance = sampled_moments(config, process, data, steps + 1)
    assert mean == pytest.approx(0.3, abs=0.005)
    assert variance == pytest.approx(0.25, abs=0.03)


@dataclass(frozen=True)
class Impulses(FixedNoise):
    """Noise whose draw k is 1 in row k and 0 elsewhere; the last row of x has none."""

    def draw(self, index):
        return torch.eye(len(self.x), dtype=torch.float64)[index].reshape(-1, 1)


@every_spacing
@pytest.mark.parametrize("steps", [40, 8])
@pytest.mark.parametrize("corrector_steps", [0, 2])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_chain_and_the_corrector_have_exactly_the_moments_of_their_recursions(
    monkeypatch, spacing, steps, corrector_steps, variance
):
    """Gaussian data make each step affine; the corrector's step is fixed, as it would depend on the draw."""
    if corrector_steps and variance == "beta_tilde":
        variance = "beta"  # the predictor has no other
    process = make_process(DdpmProcess(num_train_timesteps=40, reverse_variance=variance))
    data, tau = GaussianData(0.3, 0.2), 0.003
    monkeypatch.setattr(predictor_corrector, "step_sizes", lambda score, z, snr: torch.full((len(z),), tau).double())
    config = Ancestral(num_steps=steps, clip_x0=False, spacing=spacing)
    if corrector_steps:
        config = PredictorCorrector(num_steps=steps, clip_x0=False, spacing=spacing, corrector_steps=corrector_steps)
    draws = (steps - 1) * (1 + corrector_steps) + 1
    actual = solve(data.denoiser(process), Impulses(torch.zeros(draws + 1, 1)), config).flatten()
    mean, var = 0.0, 1.0
    times = time_grid(process, steps, config)
    for t, s in pairwise(times):
        q = chain.posterior(process, s, t)
        gain = data.variance * float(process.alpha(t)) / float(data.variance_at(process, t))
        slope = float(q.coef_x_t) + float(q.coef_x_0) * gain
        mean = slope * mean + float(q.coef_x_0) * (1 - gain * float(process.alpha(t))) * data.mean
        added = float(chain.transition_variance(process, s, t)) if variance == "beta" else float(q.variance)
        var = slope**2 * var + (added if s else 0.0)
        for _ in range(corrector_steps if s else 0):
            pull = tau / float(data.variance_at(process, s))
            mean, var = mean + pull * (float(process.alpha(s)) * data.mean - mean), (1 - pull) ** 2 * var + 2 * tau
    assert float(actual[-1]) == pytest.approx(mean, rel=1e-9)
    assert float((actual - actual[-1]).square().sum()) == pytest.approx(var, rel=1e-9)


@near_process
def test_predictor_corrector_samples_the_data(process):
    """4096 independent dimensions: within 4 standard errors and the discretisation's bias."""
    data = GaussianData(0.3, 0.25)
    config = PredictorCorrector(num_steps=90, clip_x0=False)
    actual = solve(data.denoiser(process), noise(range(16), (1, 16, 16)), config)
    assert float(actual.mean()) == pytest.approx(0.3, abs=4 * 0.5 / 64 + 0.005)
    assert float(actual.var()) == pytest.approx(0.25, abs=4 * 0.25 * (2 / 4096) ** 0.5 + 0.03)


@pytest.mark.parametrize(("unipc_order", "expected"), [(1, 2.0), (2, 3.0), (3, 4.0)])
def test_unipcs_corrector_adds_an_order_to_each(unipc_order, expected):
    steps = (40, 80, 160)
    config = UniPC(order=unipc_order, clip_x0=False, denoise=False, spacing="log_snr")
    errors = [float((sampled_ends(config, n) - exact_ends()).abs().max()) for n in steps]
    assert convergence_order(steps, errors) == pytest.approx(expected, abs=0.2)


def moment_integral(degree: int, start: float, h: float) -> float:
    """e^{-(start + h)} times the integral of e^l (l - 0.3)^degree over [start, start + h]."""
    return quad(lambda at: np.exp(at - start - h) * (at - 0.3) ** degree, start, start + h, epsabs=1e-13)[0]


@given(st.floats(-3, 3), st.lists(st.floats(0.1, 2), min_size=3, max_size=3), st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=50)
def test_multistep_integrals_are_exact_for_polynomials(start, gaps, count, data):
    """As many points as coefficients; with UniPC's point ahead, one more."""
    h = gaps[0]
    places = [start, start - gaps[1], start - gaps[1] - gaps[2]][:count]

    def history(degree, at):
        return [(place, torch.tensor((place - 0.3) ** degree, dtype=torch.float64)) for place in at]

    degree = data.draw(st.integers(0, count - 1))
    expected = moment_integral(degree, start, h)
    assert float(integral(history(degree, places), h)) == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert float(change(history(degree, places), h)) == pytest.approx(expected, rel=1e-8, abs=1e-8)
    ahead = history(count, [start + h])[0]
    expected = moment_integral(count, start, h)
    assert float(change(history(count, places), h, ahead)) == pytest.approx(expected, rel=1e-8, abs=1e-8)


# Ends, clipping and limits


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
@every_solver
def test_denoising_is_one_estimate_of_x0_at_the_least_noise(config, spacing):
    """Its step to data is one of `num_steps`."""
    process = PROCESSES["vp"]
    denoiser = MixtureData().denoiser(process)
    with_step, without = changed(config, clip_x0=False), changed(config, clip_x0=False, denoise=False)
    if config.kind != "rk45":
        with_step = changed(with_step, num_steps=13, spacing=spacing, s_churn=100.0)
        without = changed(without, num_steps=12, spacing=spacing, s_churn=100.0)
    noisy = solve(denoiser, noise(), without)
    t = torch.full((len(noisy),), process.t_min, dtype=torch.float64)
    expected = denoiser.x0(noisy, t)
    torch.testing.assert_close(solve(denoiser, noise(), with_step), expected, rtol=0, atol=1e-12)


@every_process
@every_solver
def test_clipping_holds_every_image_in_range_where_the_network_is_wild(process, config):
    wild = Denoiser(lambda x, time, label: torch.full_like(x, 30.0), process, "epsilon")
    clipped = solve(wild, noise(), changed(config, clip_x0=True))
    assert float(clipped.abs().max()) <= 1 + 1e-12
    free = solve(wild, noise(), changed(config, clip_x0=False))
    assert float(free.abs().max()) > 1


@every_process
@every_solver
def test_a_perfect_denoiser_of_one_image_returns_it(process, config):
    image = torch.linspace(-0.9, 0.9, 15, dtype=torch.float64).reshape(1, 1, 3, 5)
    perfect = Denoiser(lambda x, time, label: image.expand_as(x), process, "x0")
    torch.testing.assert_close(solve(perfect, noise(), config), image.expand(4, -1, -1, -1), rtol=0, atol=1e-12)


@every_solver
def test_a_network_that_gives_zeros_gives_finite_images(config):
    """As one whose last layer starts at zero: there the corrector has no direction."""
    zeros = Denoiser(lambda x, time, label: torch.zeros_like(x), PROCESSES["vp"], "epsilon")
    assert solve(zeros, noise(), config).isfinite().all()


@given(st.integers(2, 2000), st.booleans(), st.data())
@settings(deadline=None, max_examples=50)
def test_a_chains_even_grid_is_whole_steps_that_fall_from_t_to_its_end(num_train, denoise, data):
    process = Chain(torch.full((num_train,), 0.5))
    steps = data.draw(st.integers(1, num_train if denoise else num_train - 1))
    grid = time_grid(process, steps, Ddim(denoise=denoise))
    assert (grid[0], grid[-1], len(grid)) == (num_train, 0 if denoise else 1, steps + 1)
    assert torch.equal(grid, grid.round())
    assert bool((grid.diff() < 0).all())
    even = torch.linspace(num_train, 0 if denoise else 1, steps + 1, dtype=torch.float64)
    assert float((grid - even).abs().max()) <= 0.5 + 1e-9


@every_process
@every_spacing
@pytest.mark.parametrize("denoise", [True, False])
def test_a_grid_falls_and_is_even_in_what_it_says(process, spacing, denoise):
    steps = 20
    grid = time_grid(process, steps, Ddim(denoise=denoise, spacing=spacing))
    assert grid[0] == process.t_max
    assert grid[-1] == (0 if denoise else process.t_min)
    assert len(grid) == steps + 1
    assert bool((grid.diff() < 0).all())
    log_snr = process.log_snr(grid[:-1] if denoise else grid)
    places = {"log_snr": log_snr, "karras": torch.exp(-log_snr / 14), "uniform": grid}[spacing]
    gaps = places.diff()
    rounding = 1.0 if isinstance(process, Chain) and spacing == "uniform" else 1e-9
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=rounding)


@pytest.mark.parametrize(("denoise", "most"), [(True, 100), (False, 99)])
def test_more_steps_than_a_chain_has_are_refused_and_other_spacings_named(denoise, most):
    denoiser = elementwise(PROCESSES["ddpm"])
    for steps in (0, most + 1):
        config = Ddim.model_construct(num_steps=steps, eta=0.0, clip_x0=True, denoise=denoise, spacing="uniform")
        with pytest.raises(
            ValueError,
            match=f"solver.num_steps = {steps}; allowed: 1 to {most}, .*num_train_timesteps = 100; .*log_snr or karras",
        ):
            make_solver(config, denoiser, noise())
    assert make_solver(Ddim(num_steps=most, denoise=denoise), denoiser, noise()).want() is not None
    assert make_solver(Ddim(num_steps=150, denoise=denoise, spacing="karras"), denoiser, noise()).want() is not None


@pytest.mark.parametrize("config", GRID, ids=named)
def test_a_grid_finer_than_the_first_time_has_no_empty_steps(config):
    process = PROCESSES["ve"]
    config = changed(config, num_steps=2500)
    assert bool((time_grid(process, 2500, config).diff() < 0).all())
    assert solve(GaussianData(0.0, 0.25).denoiser(process), noise(range(1), (1, 1, 1)), config).isfinite().all()


def test_ddim_takes_no_root_of_a_rounding_error():
    """Where x_t holds nothing of x_s, sigma_s^2 - beta_tilde is zero, or a last bit less."""
    for start in torch.linspace(-3, 3, 50).tolist():
        config = VpProcess(log_snr_max=start + 40, log_snr_min=start, schedule=GeometricSchedule())
        denoiser = GaussianData(0.0, 0.25).denoiser(make_process(config))
        assert solve(denoiser, noise(), Ddim(num_steps=1, eta=1.0, denoise=False)).isfinite().all()


@every_solver
def test_a_learned_schedule_that_is_still_trained_gives_samples_without_gradients(config):
    process = make_process(VpProcess(schedule=LearnedSchedule(width=4)))
    assert not solve(elementwise(process), noise(), config, LABEL).requires_grad


PURE = make_process(DdpmProcess(num_train_timesteps=200, schedule=LinearSchedule(zero_terminal_snr=True)))
FROM_PURE_NOISE = [c for c in GRID if c.kind in ("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")]


@pytest.mark.parametrize("prediction_kind", ["x0", "v"])
@pytest.mark.parametrize("config", FROM_PURE_NOISE, ids=named)
def test_solvers_that_can_start_from_pure_noise_sample_the_data(config, prediction_kind):
    data, steps = GaussianData(0.3, 0.25), 200
    start = torch.tensor(PURE.t_max)
    assert PURE.log_snr(start) == -torch.inf
    denoiser = as_prediction(PURE, prediction_kind, lambda x, t: data_x0(data, PURE, x, t))
    actual = solve(denoiser, Impulses(torch.zeros(steps + 2, 1)), changed(config, num_steps=steps, clip_x0=False))
    assert actual.isfinite().all()
    assert float(actual[-1]) == pytest.approx(0.3, abs=1e-6)
    assert float((actual - actual[-1]).square().sum()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("config", [c for c in EVERY if c not in FROM_PURE_NOISE], ids=named)
def test_solvers_that_cannot_start_from_pure_noise_say_which_can(config):
    with pytest.raises(ValueError, match=f"solver.kind = {config.kind}: .*SNR is zero; allowed: ancestral, ddim"):
        make_solver(config, replace(elementwise(PROCESSES["vp"]), process=PURE, prediction="v"), noise())


@pytest.mark.parametrize("config", FROM_PURE_NOISE, ids=named)
def test_no_grid_in_log_snr_starts_at_minus_infinity(config):
    with pytest.raises(ValueError, match=r"allowed: .*spacing = uniform"):
        make_solver(
            changed(config, spacing="log_snr"),
            replace(elementwise(PROCESSES["vp"]), process=PURE, prediction="v"),
            noise(),
        )


# Guidance


def data_x0(data: GaussianData, process, x, t):
    """E[x_0 | x_t]."""
    alpha = expand_to(process.alpha(t), x)
    gain = data.variance * alpha / expand_to(data.variance_at(process, t), x)
    return data.mean + gain * (x - alpha * data.mean)


def as_prediction(process, kind, x0, null_label=None) -> Denoiser:
    """A network that predicts `kind`, of the estimate x0(x_t, t) or x0(x_t, t, label)."""
    sigma_data = 0.7

    def network(x, time, label):
        t = time + 1 if isinstance(process, Chain) else time / process.num_steps
        alpha, sigma = expand_to(process.alpha(t), x), expand_to(process.sigma(t), x)
        if kind == "edm":
            x = x * prediction.edm_norm(alpha, sigma, sigma_data)
        estimate = x0(x, t) if label is None else x0(x, t, label)
        epsilon = prediction.x0_to_epsilon(estimate, x, alpha, sigma)
        return {
            "epsilon": epsilon,
            "score": -epsilon,
            "x0": estimate,
            "v": prediction.velocity(estimate, epsilon, alpha, sigma),
            "edm": prediction.edm_target(estimate, x, alpha, sigma, sigma_data),
        }[kind]

    return Denoiser(network, process, kind, sigma_data, null_label)


CLASSES = (GaussianData(-0.5, 0.1), GaussianData(0.5, 0.3), GaussianData(0.0, 0.6))  # the last is without a label


def conditional(process, kind) -> Denoiser:
    def x0(x, t, label):
        estimates = torch.stack([data_x0(data, process, x, t) for data in CLASSES])
        return estimates[label, torch.arange(len(x))]

    return as_prediction(process, kind, x0, null_label=2)


LABEL = torch.tensor([0, 1, 1, 0])
VARIANCE_PRESERVING = ("epsilon", "score", "x0", "v", "edm")


@pytest.mark.parametrize("process", [PROCESSES["ddpm"], PROCESSES["vp"]], ids=["ddpm", "vp"])
@pytest.mark.parametrize("kind", VARIANCE_PRESERVING)
@pytest.mark.parametrize("config", [Ddim(num_steps=6), Heun(num_steps=6), Ancestral(num_steps=6)], ids=named)
def test_guidance_is_the_same_whatever_is_predicted(process, kind, config):
    config = changed(config, clip_x0=False)
    reference, other = (
        solve(conditional(process, name), noise(), config, LABEL, ClassifierFree(scale=1.7)) for name in ("x0", kind)
    )
    torch.testing.assert_close(other, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", VARIANCE_PRESERVING)
def test_guidance_goes_from_the_unconditional_to_the_conditional_model_and_on_along_a_line(kind):
    process = PROCESSES["vp"]
    denoiser, one = conditional(process, kind), Ddim(num_steps=1, clip_x0=False)

    def guided_by(scale, config: SolverConfig = one):
        return solve(denoiser, noise(), config, LABEL, ClassifierFree(scale=scale))

    for config in (one, Dpmpp3M(num_steps=7, clip_x0=False)):
        with_label, without = solve(denoiser, noise(), config, LABEL), solve(denoiser, noise(), config)
        torch.testing.assert_close(guided_by(1.0, config), with_label, rtol=0, atol=1e-9)
        torch.testing.assert_close(guided_by(0.0, config), without, rtol=0, atol=1e-9)
        assert float((with_label - without).abs().min()) > 1e-3
    for scale in (0.3, 2.5):
        expected = guided_by(0.0) + scale * (guided_by(1.0) - guided_by(0.0))
        torch.testing.assert_close(guided_by(scale), expected, rtol=0, atol=1e-9)


@every_solver
def test_a_guided_image_alone_is_bitwise_the_image_in_a_batch(config):
    denoiser = elementwise(PROCESSES["vp"])

    def images(of):
        label = torch.tensor([number % 3 for number in of])
        return solve(denoiser, noise(of), config, label, ClassifierFree(scale=2.0))

    together = images([4, 2, 9])
    for row, number in enumerate([4, 2, 9]):
        assert torch.equal(images([number])[0], together[row])


def test_labels_and_guidance_need_a_network_that_has_them():
    without = MixtureData().denoiser(PROCESSES["vp"])
    with pytest.raises(ValueError, match=r"labels: this network has none .network.classes = 0"):
        make_solver(Ddim(), without, noise(), LABEL)
    with pytest.raises(ValueError, match=r"guidance\.kind = classifier_free: needs labels"):
        make_solver(Ddim(), elementwise(PROCESSES["vp"]), noise(), None, ClassifierFree())


def test_autoguidance_goes_away_from_the_weaker_model():
    process = PROCESSES["vp"]
    strong, weak = conditional(process, "v"), as_prediction(process, "v", lambda x, t, label: 0.5 * x, null_label=2)
    x, t = noise().draw(0), torch.full((4,), 0.4, dtype=torch.float64)
    actual = autoguided(strong, weak, 2.5).output(x, t, LABEL)
    expected = weak.output(x, t, LABEL) + 2.5 * (strong.output(x, t, LABEL) - weak.output(x, t, LABEL))
    assert torch.equal(actual, expected)
    config = Ddim(num_steps=5)
    alone, beside = solve(strong, noise(), config, LABEL), solve(autoguided(strong, weak, 1.0), noise(), config, LABEL)
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda own: replace(own, prediction="x0"), "predicts x0 over 1000 steps, the model edm for sigma_data = 0.7"),
        (lambda own: replace(own, sigma_data=0.2), "edm for sigma_data = 0.2"),
        (lambda own: replace(own, process=PROCESSES["ddpm"]), "over 100 steps"),
        (lambda own: replace(own, process=learned()), "with a learned variance"),
        (lambda own: replace(own, process=PROCESSES["sub_vp"]), "another noise schedule than the model"),
        (lambda own: replace(own, null_label=3), "has 3 classes, the model 2"),
    ],
    ids=["prediction", "sigma_data", "steps", "variance", "schedule", "labels"],
)
def test_a_guide_of_another_kind_is_refused(guide, message):
    own = conditional(PROCESSES["vp"], "edm")
    with pytest.raises(ValueError, match=f"guidance.guide: .*{message}.*; allowed: a guide"):
        autoguided(own, guide(own), 2.0)


@pytest.mark.parametrize("kind", ["classifier_free", "autoguidance"])
def test_guidance_leaves_a_learned_variance_as_the_strong_view_has_it(kind):
    def network(bias, interpolation):
        return lambda x, time, label: torch.cat([0.4 * x + bias, torch.full_like(x, interpolation)], dim=1)

    def by_label(x, time, label):
        strong, weak = network(0.1, 0.5)(x, time, label), network(-0.2, -0.9)(x, time, label)
        return torch.where(expand_to(label == 0, x).bool(), strong, weak)

    alone = Denoiser(network(-0.2 + 3 * 0.3, 0.5), learned(), "x0", null_label=1)  # the prediction is guided by hand
    config, label = Ancestral(num_steps=5), torch.zeros(4, dtype=torch.int64)
    if kind == "classifier_free":
        actual = solve(replace(alone, network=by_label), noise(), config, label, ClassifierFree(scale=3.0))
    else:
        strong, weak = (replace(alone, network=network(*values)) for values in ((0.1, 0.5), (-0.2, -0.9)))
        actual = solve(autoguided(strong, weak, 3.0), noise(), config, label)
    torch.testing.assert_close(actual, solve(alone, noise(), config, label), rtol=0, atol=1e-12)


def test_a_guide_without_labels_is_told_none():
    process = PROCESSES["vp"]
    strong, weak = conditional(process, "v"), as_prediction(process, "v", lambda x, t: 0.5 * x)
    x, t = noise().draw(0), torch.full((4,), 0.4, dtype=torch.float64)
    actual = autoguided(strong, weak, 2.5).output(x, t, LABEL)
    expected = weak.output(x, t) + 2.5 * (strong.output(x, t, LABEL) - weak.output(x, t))
    assert torch.equal(actual, expected)


def learned():
    return make_process(DdpmProcess(num_train_timesteps=1000, reverse_variance="learned"))
