"""A learned schedule: monotone whatever it learns, its ends fixed, trained by the gradient of the squared loss."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import LearnedSchedule, ObjectiveConfig, SubVpProcess, VeProcess, VlbWeighting, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.objective import Objective, total_loss
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.process.schedule import MIN_TIME
from diffusion.process.sde import make_process
from diffusion.tensors import expand_to

HIGHEST, LOWEST = 13.3, -13.3


def schedule_of(width: int, seed: int = 0, spread: float = 0.0, highest=HIGHEST, lowest=LOWEST) -> LearnedLogSnr:
    """A schedule whose parameters have been moved by N(0, spread^2)."""
    schedule, generator = LearnedLogSnr(width, highest, lowest), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return schedule


spreads = st.sampled_from([0.0, 0.3, 3.0, 30.0])


@given(st.integers(1, 64), st.integers(0, 2**31), spreads, st.floats(-20, 20), st.floats(0.1, 30))
@settings(deadline=None, max_examples=60)
def test_log_snr_falls_from_end_to_end_whatever_the_parameters(width, seed, spread, lowest, range_):
    schedule = schedule_of(width, seed, spread, lowest + range_, lowest).requires_grad_(False)
    t = torch.linspace(MIN_TIME, 1, 1001, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert log_snr[[0, -1]].tolist() == pytest.approx([lowest + range_, lowest], abs=1e-9)
    assert bool((log_snr.diff() < 0).all())
    assert bool((schedule.dlogsnr_dt(t) < 0).all())
    assert bool(torch.isfinite(schedule.dlogsnr_dt(t)).all())


@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0])
def test_slope_is_the_derivative(spread):
    schedule = schedule_of(16, spread=spread)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.dlogsnr_dt(t.detach()).detach(), derivative, rtol=1e-9, atol=0)


def test_it_begins_close_to_a_line():
    t = torch.linspace(MIN_TIME, 1, 101, dtype=torch.float64)
    line = HIGHEST + (LOWEST - HIGHEST) * (t - MIN_TIME) / (1 - MIN_TIME)
    assert float((schedule_of(64).log_snr(t).detach() - line).abs().max()) < 0.01 * (HIGHEST - LOWEST)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_networks_are_told_how_far_log_snr_has_fallen(spread):
    """The same log-SNR is the same time to a network, whatever the schedule has learned since."""
    schedule = schedule_of(16, spread=spread).requires_grad_(False)
    log_snr = torch.linspace(HIGHEST, LOWEST, 23, dtype=torch.float64)
    t = schedule.time(log_snr)
    torch.testing.assert_close(schedule.log_snr(t), log_snr, rtol=0, atol=1e-9)
    expected = torch.linspace(0, 1, 23, dtype=torch.float64)
    torch.testing.assert_close(schedule.network_time_fraction(t), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [VpProcess, SubVpProcess, VeProcess])
def test_a_process_keeps_its_ends_while_its_schedule_learns(kind):
    process = make_process(kind(schedule=LearnedSchedule(width=8), log_snr_max=9.0, log_snr_min=-8.0))
    before = process.prior_std
    with torch.no_grad():
        assert isinstance(process.schedule, LearnedLogSnr)
        for parameter in process.schedule.parameters():
            parameter += torch.linspace(-2, 3, 8)
        ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
        assert ends.tolist() == pytest.approx([9, -8], abs=1e-9)
        assert float(process.sigma(torch.tensor(process.t_max, dtype=torch.float64))) == pytest.approx(
            before if kind is VeProcess else 1, rel=1e-3
        )


def test_answers_are_float64_where_t_is():
    schedule = schedule_of(4)
    t = torch.tensor([[0.1, 0.2], [0.3, 1.0]], dtype=torch.float64)
    for actual in (schedule.log_snr(t), schedule.dlogsnr_dt(t)):
        assert (actual.dtype, actual.device, actual.shape) == (torch.float64, t.device, t.shape)


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, time, label=None):
        return self.scale * torch.cos(3 * x + expand_to(time / 300, x))


@pytest.mark.parametrize("kind", [VpProcess, SubVpProcess, VeProcess])
def test_the_schedule_gets_the_gradient_of_the_squared_loss_and_the_network_that_of_the_loss(kind):
    """In one backward pass, rows of padding left out, against explicit gradients of the two sums."""
    process = make_process(kind(schedule=LearnedSchedule(width=8), log_snr_max=5.0, log_snr_min=-4.0))
    objective = Objective(ObjectiveConfig(weighting=VlbWeighting()), Denoiser(Network(), process, "epsilon"))
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(12, 1, 2, 2, generator=generator) for _ in range(2))
    t = process.time_from_fraction((torch.arange(12, dtype=torch.float64) + 0.5) / 12)
    real = (torch.arange(12) < 10).float()

    loss, _ = objective(x_0, t, eps)
    total_loss(loss, real, 10, 1).backward()
    schedule = objective.schedule
    assert schedule is not None
    assert schedule.row_factor is not None
    assert torch.equal(schedule.row_factor, 2 * loss.detach())
    actual = {name: gradient(parameter).clone() for name, parameter in objective.named_parameters()}

    loss, _ = objective(x_0, t, eps)
    schedule.row_factor = None
    names, parameters = zip(*objective.named_parameters(), strict=True)
    of_loss = torch.autograd.grad((loss * real).sum() / 10, parameters, retain_graph=True)
    of_square = torch.autograd.grad((loss.square() * real).sum() / 10, parameters)
    for name, plain, squared in zip(names, of_loss, of_square, strict=True):
        own, other = (plain, squared) if name.startswith("network") else (squared, plain)
        torch.testing.assert_close(actual[name], own, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(actual[name], other, rtol=1e-2)


VARIANCE = 0.25


def exact(x, time, label=None):
    """E[eps | x_t] of N(0, VARIANCE) at the log-SNR that the network's clock shows."""
    log_snr = expand_to(HIGHEST - time.double() / 1000 * (HIGHEST - LOWEST), x)
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    return sigma / (alpha**2 * VARIANCE + sigma**2) * x


def expected_losses(process, t):
    """The terms of the continuous bound: -dSNR/dt / 2 times Var(x_0 | x_t), times the span of t."""
    snr = torch.exp(process.log_snr(t))
    return -(process.t_max - process.t_min) * snr * process.dlogsnr_dt(t) / 2 * VARIANCE / (1 + snr * VARIANCE)


def test_training_lowers_the_variance_of_the_bounds_estimate_and_not_the_bound():
    """Exact denoiser, Gaussian data: what is left to learn is where the terms are estimated."""
    process = make_process(VpProcess(schedule=LearnedSchedule(width=16)))
    objective = Objective(ObjectiveConfig(weighting=VlbWeighting()), Denoiser(exact, process, "epsilon"))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    grid = process.time_from_fraction((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = expected_losses(process, grid)
    for _ in range(150):
        share = (torch.arange(64) + torch.rand(64, generator=generator, dtype=torch.float64)) / 64
        x_0 = VARIANCE**0.5 * torch.randn(64, 1, 8, 8, generator=generator)
        loss, _ = objective(x_0, process.time_from_fraction(share), torch.randn(64, 1, 8, 8, generator=generator))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = expected_losses(process, grid)
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=1e-3)
    assert float(after.std()) < 0.5 * float(before.std())
