"""Proposals over steps and times: unbiased whatever they are, and as much better as they are meant to be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    GeometricSchedule,
    LaplaceSchedule,
    LinearSchedule,
    VeProcess,
    VpProcess,
)
from diffusion.gaussian import GaussianData
from diffusion.likelihood.discrete import ReverseKernel
from diffusion.likelihood.proposal import StepProposal, TimeProposal, even_log_snr, pilot_steps, spread_uniforms
from diffusion.process.sde import Process, make_process

PROCESSES = {
    "linear": DdpmProcess(schedule=LinearSchedule(), reverse_variance="beta_tilde"),
    "cosine": DdpmProcess(schedule=CosineSchedule()),
    "zero terminal SNR": DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True)),
    "vp": VpProcess(num_train_timesteps=300),
    "ve": VeProcess(num_train_timesteps=300),
}
CONTINUOUS = {
    "vp": VpProcess(),
    "laplace": VpProcess(schedule=LaplaceSchedule(), log_snr_max=8, log_snr_min=-8),
    "ve": VeProcess(),
    "chain": DdpmProcess(schedule=LinearSchedule()),
}


def grid(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("draws", [1, 5])
def test_spread_uniforms_take_one_of_each_cell(images, draws):
    u = spread_uniforms(np.random.default_rng(0), images, draws)
    assert u.shape == (images, draws)
    assert sorted(np.floor(u.flatten() * images * draws)) == list(range(images * draws))
    assert (np.floor(u * draws) == np.arange(draws)).all()


def test_each_u_is_uniform():
    generator = np.random.default_rng(1)
    first = np.array([spread_uniforms(generator, 3, 2)[1, 1] for _ in range(4000)])
    assert np.histogram(first, bins=4, range=(0.5, 1))[0] == pytest.approx([1000] * 4, abs=120)


@pytest.mark.parametrize("name", PROCESSES)
def test_pilot_steps_span_the_chain(name):
    process = make_process(PROCESSES[name])
    steps = pilot_steps(process, 20)
    assert steps.dtype == torch.int64
    assert int(steps[0]) == 2
    assert int(steps[-1]) == process.num_steps
    assert bool((steps.diff() > 0).all())
    assert 5 < len(steps) <= 20


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.integers(1, 50))
@settings(deadline=None)
def test_the_weighted_sum_over_drawn_steps_is_the_sum_over_steps(raw, draws):
    """Over a fine grid of u the mean of weight times f is the sum of f, for any proposal and any f."""
    probabilities = torch.tensor(raw, dtype=torch.float64)
    proposal = StepProposal(probabilities / probabilities.sum())
    steps, weights = proposal.draw(grid(200_000))
    f = torch.cos(torch.arange(len(raw), dtype=torch.float64) * draws) + 2
    largest = float((f / proposal.probabilities).max())
    assert float((weights * f[steps - 2]).mean()) == pytest.approx(float(f.sum()), abs=1e-5 * largest * len(raw))


def test_ends_of_u_are_the_first_and_last_step():
    proposal = StepProposal.uniform(1000)
    steps, weights = proposal.draw(torch.tensor([[0.0, np.nextafter(1, 0)]], dtype=torch.float64))
    assert steps.tolist() == [[2, 1000]]
    assert steps.dtype == torch.int64
    torch.testing.assert_close(weights, torch.full((1, 2), 999.0, dtype=torch.float64))


@pytest.mark.parametrize("probabilities", [[0.5, 0.6], [1.0, 0.0], [1.5, -0.5], [math.nan, 1.0]])
def test_a_proposal_that_could_leave_a_step_out_is_refused(probabilities):
    with pytest.raises(ValueError, match="above 0 and of sum 1"):
        StepProposal(torch.tensor(probabilities, dtype=torch.float64))


@pytest.mark.parametrize("terms", [[0.0, 0.0], [1.0, math.nan]])
def test_a_pilot_without_an_error_is_refused(terms):
    process = make_process(PROCESSES["linear"])
    with pytest.raises(ValueError, match="finite and some above 0"):
        StepProposal.from_pilot(process, torch.tensor([2, 1000]), torch.tensor(terms))
    with pytest.raises(ValueError, match="finite and some above 0"):
        TimeProposal.from_pilot(process, even_log_snr(process, 2), torch.tensor(terms))


def expected_terms(process: Process, data: GaussianData) -> torch.Tensor:
    """E[L_{t-1}] of t = 2..T: quadratic in x_0 and eps, so a mean over sign corners."""
    kernel = ReverseKernel(data.denoiser(process), clip_x0=False)
    t = torch.arange(2, process.num_steps + 1)
    x_0 = torch.full((len(t), 1), math.sqrt(data.variance), dtype=torch.float64)
    return (kernel.diffusion_kl(x_0, t, torch.ones_like(x_0)) + kernel.diffusion_kl(x_0, t, -torch.ones_like(x_0))) / 2


@pytest.mark.parametrize("name", PROCESSES)
def test_a_pilot_of_few_steps_finds_the_root_mean_squares_of_all(name):
    """With exact terms at the pilot's steps, weight times term hardly varies over all other steps."""
    process, data = make_process(PROCESSES[name]), GaussianData(0.0, 0.25)
    process.reverse_variance = "beta_tilde"
    terms = expected_terms(process, data) if name != "zero terminal SNR" else torch.exp(-grid(999) * 5)
    steps = pilot_steps(process, 30)
    proposal = StepProposal.from_pilot(process, steps, terms[steps - 2])
    assert float(proposal.probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert float((1 / proposal.probabilities).max()) <= 20 * (process.num_steps - 1) * (1 + 1e-12)
    weighted = terms / proposal.probabilities
    relative = float(((proposal.probabilities * weighted**2).sum() / terms.sum() ** 2 - 1).sqrt())
    uniform = float((len(terms) * (terms**2).sum() / terms.sum() ** 2 - 1).sqrt())
    assert relative < 0.35
    assert relative < uniform / 2


def test_evaluations_for_one_standard_error():
    """Gaussian data, D = 64, 32 images x 4 draws: at most 1 / 20 of what independent uniform steps need.

    Both spreads are of the estimate for one fixed set of images; a spread of s needs s^2 evaluations.
    """
    process = make_process(DdpmProcess(num_train_timesteps=200, schedule=CosineSchedule()))
    data, generator = GaussianData(0.0, 0.25), torch.Generator().manual_seed(0)
    kernel = ReverseKernel(data.denoiser(process), clip_x0=False)
    x_0 = 0.5 * torch.randn(32, 64, dtype=torch.float64, generator=generator)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, 64, dtype=torch.float64, generator=generator)

    pilot = pilot_steps(process, 16).repeat_interleave(4)
    other_images = 0.5 * noise(len(pilot))
    proposal = StepProposal.from_pilot(process, pilot, kernel.diffusion_kl(other_images, pilot, noise(len(pilot))))
    numbers = np.random.default_rng(0)
    repeated = x_0.repeat_interleave(4, dim=0)

    def spread(proposal: StepProposal, stratified: bool) -> float:
        actual = []
        for _ in range(150):
            u = spread_uniforms(numbers, 32, 4) if stratified else numbers.random((32, 4))
            steps, weights = proposal.draw(torch.tensor(u))
            terms = kernel.diffusion_kl(repeated, steps.flatten(), noise(128))
            actual.append(float((weights.flatten() * terms).mean()))
        return float(np.std(actual))

    assert (spread(StepProposal.uniform(200), False) / spread(proposal, True)) ** 2 > 20


@pytest.mark.parametrize("name", CONTINUOUS)
def test_times_and_weights_integrate_over_time(name):
    """The mean of weight times f is the integral of f over t: here d log_snr / dt times a function of log-SNR."""
    process = make_process(CONTINUOUS[name])
    pilot = even_log_snr(process, 12)
    for proposal in (TimeProposal.uniform(process), TimeProposal.from_pilot(process, pilot, torch.exp(-pilot / 9))):
        t, weights = proposal.draw(grid(20_000).reshape(4, -1))
        assert t.shape == weights.shape == (4, 5000)
        assert bool(((t >= process.t_min) & (t <= process.t_max)).all())
        log_snr = process.log_snr(t)
        actual = float((weights * -process.dlogsnr_dt(t) * torch.sigmoid(log_snr)).mean())
        ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
        high, low = torch.nn.functional.softplus(ends)
        assert actual == pytest.approx(float(high - low), rel=1e-5)


def test_the_first_u_is_the_least_noise():
    for config in (VpProcess(), VpProcess(schedule=GeometricSchedule(), log_snr_max=36, log_snr_min=-33)):
        process = make_process(config)
        t, _ = TimeProposal.uniform(process).draw(torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64))
        assert t.tolist() == pytest.approx([process.t_min, process.t_max], rel=1e-9)
