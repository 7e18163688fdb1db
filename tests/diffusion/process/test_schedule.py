"""Noise schedules in continuous time: derivatives, inverses, and the distributions they are named after."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    CosineSchedule,
    EdmSchedule,
    GeometricSchedule,
    LaplaceSchedule,
    LearnedSchedule,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
    ScheduleConfig,
    SigmoidSchedule,
    TableSchedule,
)
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.process.make_schedule import make_schedule
from diffusion.process.schedule import MIN_TIME, IntegratedBeta, Schedule, Table
from diffusion.tensors import expand_to, to_floats

ENDS = (9.0, -7.0)
SCHEDULES = [
    LinearSchedule(),
    LinearSchedule(beta_start=0.01, beta_end=0.002),
    LinearSchedule(beta_start=0.01, beta_end=0.01),
    QuadraticSchedule(),
    ScaledLinearSchedule(),
    SigmoidSchedule(),
    CosineSchedule(),
    CosineSchedule(s=0.3),
    LaplaceSchedule(),
    LaplaceSchedule(mean=1.5, scale=2.0),
    EdmSchedule(),
    EdmSchedule(p_mean=0.3, p_std=2.0),
    GeometricSchedule(),
    LearnedSchedule(width=16),
    TableSchedule(betas=(0.1, 0.05, 0.3, 0.2, 0.7)),
]


def built(config: ScheduleConfig) -> Schedule:
    schedule = make_schedule(config, *ENDS)
    return schedule.requires_grad_(False) if isinstance(schedule, LearnedLogSnr) else schedule


every_schedule = pytest.mark.parametrize(
    "schedule",
    [built(config) for config in SCHEDULES],
    ids=[f"{config.kind}-{i}" for i, config in enumerate(SCHEDULES)],
)
# on both sides of 1/2, where Laplace changes branch, and off the knots of the table
TIMES = torch.tensor([1e-3, 0.013, 0.11, 0.31, 0.4999, 0.5001, 0.77, 0.93, 0.9987], dtype=torch.float64)
MIDDLES = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


@every_schedule
def test_slope_is_the_derivative(schedule: Schedule):
    t = TIMES.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.dlogsnr_dt(TIMES), derivative, rtol=1e-9, atol=0)


@every_schedule
def test_log_snr_falls_strictly(schedule: Schedule):
    log_snr = schedule.log_snr(torch.linspace(MIN_TIME, 1 - 1e-9, 5001, dtype=torch.float64))
    assert bool((log_snr.diff() < 0).all())
    assert bool((schedule.dlogsnr_dt(MIDDLES) < 0).all())


@every_schedule
def test_time_is_the_inverse_and_beyond_the_ends_it_is_an_end(schedule: Schedule):
    torch.testing.assert_close(schedule.time(schedule.log_snr(TIMES)), TIMES, rtol=1e-10, atol=0)
    low, high = schedule.time(torch.tensor([1e3, -1e3], dtype=torch.float64)).tolist()
    assert 0 <= low < 1e-2
    assert high == pytest.approx(1, abs=1e-15)


@every_schedule
def test_shapes_are_kept_and_networks_hear_how_far_t_is(schedule: Schedule):
    t = TIMES[:6].reshape(2, 3)
    for function in (schedule.log_snr, schedule.dlogsnr_dt, schedule.network_time_fraction):
        assert function(t).shape == (2, 3)
        assert function(t).dtype == torch.float64
        assert torch.equal(function(t).flatten(), function(t.flatten()))
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-10, atol=0)
    assert bool((schedule.network_time_fraction(TIMES).diff() > 0).all())


@pytest.mark.parametrize(
    "config", [LinearSchedule(), QuadraticSchedule(), ScaledLinearSchedule(), SigmoidSchedule()], ids=lambda c: c.kind
)
def test_integrals_of_beta_are_integrals_and_betas_are_1000_times_the_tables(config):
    schedule = make_schedule(config, *ENDS)
    assert isinstance(schedule, IntegratedBeta)
    t = TIMES.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.integral(t).sum(), t)
    torch.testing.assert_close(schedule.beta(TIMES), derivative, rtol=1e-10, atol=0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(schedule.integral(ends)[0]) == 0
    # the logistic function on [-6, 6] goes from 0.0025 to 0.9975
    slack = 0.0025 * 1000 * (config.beta_end - config.beta_start) if isinstance(config, SigmoidSchedule) else 1e-12
    assert schedule.beta(ends).tolist() == pytest.approx([1000 * config.beta_start, 1000 * config.beta_end], abs=slack)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.5), (-2.0, 1.7)])
def test_laplaces_log_snrs_are_distributed_as_laplace(mean, scale):
    """At uniform t: the share of times below each log-SNR is the distribution function, exactly."""
    schedule = make_schedule(LaplaceSchedule(mean=mean, scale=scale), *ENDS)
    log_snr = schedule.log_snr(MIDDLES)
    cdf = scipy.stats.laplace(mean, scale).cdf(log_snr.numpy())
    torch.testing.assert_close(torch.from_numpy(cdf), 1 - MIDDLES, rtol=1e-12, atol=0)
    for point in (mean - 2 * scale, mean, mean + 3 * scale):
        share = float((log_snr < point).double().mean())
        assert share == pytest.approx(scipy.stats.laplace(mean, scale).cdf(point), abs=1e-3)


@pytest.mark.parametrize(("p_mean", "p_std"), [(-1.2, 1.2), (0.4, 0.6)])
def test_edms_noise_levels_are_distributed_as_log_normal(p_mean, p_std):
    schedule = make_schedule(EdmSchedule(p_mean=p_mean, p_std=p_std), *ENDS)
    log_sigma = -schedule.log_snr(MIDDLES) / 2
    cdf = scipy.stats.norm(p_mean, p_std).cdf(log_sigma.numpy())
    torch.testing.assert_close(torch.from_numpy(cdf), MIDDLES, rtol=1e-12, atol=0)
    for point in (p_mean - 2 * p_std, p_mean, p_mean + p_std):
        share = float((log_sigma < point).double().mean())
        assert share == pytest.approx(scipy.stats.norm(p_mean, p_std).cdf(point), abs=1e-3)


@pytest.mark.parametrize("log_snr", [13.0, 30.0, 60.0])
def test_edms_time_keeps_its_digits_far_in_the_lower_tail(log_snr):
    """1 + erf would be 0 there."""
    time = make_schedule(EdmSchedule(p_std=0.8), *ENDS).time(torch.tensor(log_snr, dtype=torch.float64))
    assert float(time) == pytest.approx(scipy.stats.norm.cdf((-log_snr / 2 + 1.2) / 0.8), rel=1e-10, abs=0)


def test_geometric_is_a_geometric_sequence():
    """edm_sigma = sigma_min (sigma_max / sigma_min)^share, share of the way from MIN_TIME to 1."""
    schedule = make_schedule(GeometricSchedule(), -2 * math.log(0.01), -2 * math.log(50.0))
    sigma = torch.exp(-schedule.log_snr(TIMES) / 2)
    expected = 0.01 * 5000 ** ((TIMES - MIN_TIME) / (1 - MIN_TIME))
    torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)


def test_a_tables_schedule_has_its_products_at_its_knots_and_constant_rates_between():
    betas = torch.tensor([0.1, 0.05, 0.3], dtype=torch.float64)
    schedule = make_schedule(TableSchedule(betas=tuple(betas.tolist())), *ENDS)
    assert isinstance(schedule, Table)
    a = torch.sigmoid(schedule.log_snr(torch.arange(4, dtype=torch.float64) / 3))
    torch.testing.assert_close(a, torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)]))
    rate = -schedule.dlogsnr_dt(torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7, 0.9], dtype=torch.float64))
    a = torch.sigmoid(schedule.log_snr(torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7, 0.9], dtype=torch.float64)))
    torch.testing.assert_close(rate * (1 - a), -3 * torch.log1p(-betas).repeat_interleave(2), rtol=1e-12, atol=0)


@given(st.lists(st.floats(1e-6, 0.99), min_size=2, max_size=30), st.floats(1e-6, 1))
@settings(deadline=None)
def test_any_tables_time_is_the_inverse(table, time):
    schedule = make_schedule(TableSchedule(betas=tuple(table)), *ENDS)
    t = torch.tensor([time], dtype=torch.float64)
    actual = schedule.time(schedule.log_snr(t))
    # where little is added to a large -log a, t is known to that sum's rounding
    torch.testing.assert_close(actual, t, rtol=1e-7, atol=1e-7)


def test_rows_broadcasts_over_images_in_their_type():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    like = torch.ones(2, 3, 4, 5)
    result = expand_to(values, like) * like
    assert result.dtype == torch.float32
    assert torch.equal(result[0], torch.ones(3, 4, 5))
    assert torch.equal(result[1], torch.full((3, 4, 5), 2.0))


def test_numbers_are_python_floats():
    assert to_floats(torch.tensor([1.5, -2.0], dtype=torch.float64)) == [1.5, -2.0]
