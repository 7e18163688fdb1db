"""Processes in continuous time against Song et al. (2021), and what every process keeps to."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import TypeAdapter

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    EdmSchedule,
    GeometricSchedule,
    LaplaceSchedule,
    LearnedSchedule,
    LinearSchedule,
    ProcessConfig,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    SubVpProcess,
    TableSchedule,
    VeProcess,
    VpProcess,
)
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.process.sde import Chain, Process, make_process, sub_vp_to_vp

CONTINUOUS = {"vp": VpProcess, "sub_vp": SubVpProcess, "ve": VeProcess}
SCHEDULES = [
    LinearSchedule(),
    QuadraticSchedule(),
    ScaledLinearSchedule(),
    SigmoidSchedule(),
    CosineSchedule(),
    LaplaceSchedule(),
    EdmSchedule(),
    GeometricSchedule(),
    LearnedSchedule(width=8),
    TableSchedule(betas=tuple(0.001 + 0.0001 * i for i in range(200))),
]
every_kind = pytest.mark.parametrize("kind", CONTINUOUS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
# away from the knots of a table, where the slope jumps
TIMES = torch.tensor([0.0123, 0.1017, 0.2512, 0.5003, 0.7501, 0.9876], dtype=torch.float64)


def process_of(kind: str, schedule, **settings_) -> Process:
    steps = len(schedule.betas) if isinstance(schedule, TableSchedule) else 200
    process = make_process(CONTINUOUS[kind](schedule=schedule, num_train_timesteps=steps, **settings_))
    if isinstance(process.schedule, LearnedLogSnr):
        process.schedule.requires_grad_(False)
    return process


def derivative(function, t: torch.Tensor) -> torch.Tensor:
    t = t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(t).sum(), t)
    return gradient


def beta(t: torch.Tensor) -> torch.Tensor:
    return 0.1 + 19.9 * t


def integral(t: torch.Tensor) -> torch.Tensor:
    return 0.1 * t + 19.9 * t**2 / 2


def close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def test_vp_is_equation_12():
    process = make_process(VpProcess())
    close(process.alpha(TIMES), torch.exp(-integral(TIMES) / 2))
    close(process.sigma(TIMES), torch.sqrt(-torch.expm1(-integral(TIMES))))
    close(process.drift(TIMES), -beta(TIMES) / 2)
    close(process.squared_diffusion(TIMES), beta(TIMES))
    assert process.prior_std == 1


def test_sub_vp_is_equation_29_of_song_et_al():
    process = make_process(SubVpProcess())
    close(process.alpha(TIMES), torch.exp(-integral(TIMES) / 2))
    close(process.sigma(TIMES), -torch.expm1(-integral(TIMES)))
    close(process.drift(TIMES), -beta(TIMES) / 2)
    close(process.squared_diffusion(TIMES), beta(TIMES) * -torch.expm1(-2 * integral(TIMES)))
    assert process.prior_std == 1


def test_ve_is_a_geometric_sequence_of_noise_levels():
    """sigma from 0.01 to 50 over the process's times; g^2 = 2 sigma^2 log(sigma_max / sigma_min) / span."""
    process = make_process(VeProcess())
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    t = process.t_min + share * (process.t_max - process.t_min)
    close(process.sigma(t), 0.01 * (50 / 0.01) ** share, rtol=1e-11)
    assert process.alpha(t).tolist() == [1] * 11
    assert process.drift(t).tolist() == [0] * 11
    rate = 2 * math.log(5000) / (process.t_max - process.t_min)
    close(process.squared_diffusion(t), process.sigma(t) ** 2 * rate)
    assert process.prior_std == pytest.approx(50, rel=1e-12)


@every_schedule
def test_sub_vp_std_is_the_square_of_vps_and_alpha_is_the_same(schedule):
    """Claim 11."""
    if isinstance(schedule, GeometricSchedule | LearnedSchedule):
        low, high = (float(sub_vp_to_vp(torch.tensor(end, dtype=torch.float64))) for end in (-13.3, 13.3))
        vp = process_of("vp", schedule, log_snr_max=high, log_snr_min=low)
    else:
        vp = process_of("vp", schedule)
    sub_vp = process_of("sub_vp", schedule)
    close(sub_vp.sigma(TIMES), vp.sigma(TIMES) ** 2, rtol=1e-11)
    close(sub_vp.alpha(TIMES), vp.alpha(TIMES), rtol=1e-11)


@every_schedule
@every_kind
def test_drift_and_diffusion_are_those_of_the_marginals(kind, schedule):
    """f = d log(alpha) / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, by automatic differentiation."""
    process = process_of(kind, schedule)
    close(process.dlogsnr_dt(TIMES), derivative(process.log_snr, TIMES), rtol=1e-9)
    drift = process.drift(TIMES)
    if kind != "ve":
        close(drift, derivative(lambda t: torch.log(process.alpha(t)), TIMES), rtol=1e-8)
    growth = derivative(lambda t: process.sigma(t) ** 2, TIMES)
    variance = process.sigma(TIMES) ** 2
    close(process.squared_diffusion(TIMES), growth - 2 * drift * variance, rtol=1e-8)


@every_schedule
@every_kind
def test_alpha_and_sigma_of_a_log_snr_have_it(kind, schedule):
    process = process_of(kind, schedule)
    log_snr = process.log_snr(TIMES)
    alpha, sigma = process.alpha_at(log_snr), process.sigma_at(log_snr)
    torch.testing.assert_close(2 * torch.log(alpha / sigma), log_snr, rtol=1e-10, atol=1e-10)
    assert torch.equal(alpha, process.alpha(TIMES))
    assert torch.equal(sigma, process.sigma(TIMES))
    kept = {"vp": alpha**2 + sigma**2, "sub_vp": alpha**2 + sigma, "ve": alpha}[kind]
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=0, atol=1e-12)
    slope = derivative(process.log_alpha_at, log_snr) if kind != "ve" else torch.zeros_like(log_snr)
    torch.testing.assert_close(process.dlogalpha_dlogsnr_at(log_snr), slope, rtol=1e-9, atol=0)


@every_schedule
@every_kind
def test_time_is_the_inverse_of_log_snr_and_stays_within_its_ends(kind, schedule):
    process = process_of(kind, schedule)
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    inside = TIMES[(ends[0] <= TIMES) & (ends[1] >= TIMES)]
    assert len(inside) >= 5
    close(process.time(process.log_snr(inside)), inside, rtol=1e-10)
    beyond = torch.tensor([80.0, -80.0], dtype=torch.float64)
    assert torch.equal(process.time(beyond), ends)


@pytest.mark.parametrize(
    "schedule", [LaplaceSchedule(), EdmSchedule(), GeometricSchedule(), LearnedSchedule(), CosineSchedule()],
    ids=lambda schedule: schedule.kind,
)  # fmt: skip
@every_kind
def test_the_ends_are_the_configured_log_snrs(kind, schedule):
    process = process_of(kind, schedule, log_snr_max=9.0, log_snr_min=-7.0)
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([9.0, -7.0], abs=1e-9)


@every_kind
def test_the_data_have_no_noise(kind):
    process = make_process(CONTINUOUS[kind]())
    t = torch.zeros(2, dtype=torch.float64)
    assert process.log_snr(t).tolist() == [math.inf] * 2
    assert process.alpha(t).tolist() == [1, 1]
    assert process.sigma(t).tolist() == [0, 0]


@pytest.mark.parametrize("process", [VpProcess(), SubVpProcess(), VeProcess(), DdpmProcess()], ids=lambda p: p.kind)
def test_whole_times_are_as_good_as_floating_ones(process):
    process, t = make_process(process), torch.tensor([0, 1])
    assert process.log_snr(t).dtype == torch.float64
    assert torch.equal(process.log_snr(t), process.log_snr(t.double()))
    assert torch.equal(process.dlogsnr_dt(t[1:]), process.dlogsnr_dt(t[1:].double()))


@every_kind
def test_the_clock_and_the_steps_of_continuous_time(kind):
    process = make_process(CONTINUOUS[kind](num_train_timesteps=40))
    times = process.step_times()
    assert len(times) == 41
    assert times[[0, 1, -1]].tolist() == [0, process.t_min, process.t_max]
    close(times[1:].diff(), torch.full((39,), (process.t_max - process.t_min) / 39, dtype=torch.float64), rtol=1e-9)
    assert torch.equal(process.network_time(times), 40 * times)
    share = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    expected = process.t_min + share * (process.t_max - process.t_min)
    assert torch.equal(process.time_from_fraction(share), expected)


def test_the_clock_and_the_steps_of_a_chain():
    process = make_process(DdpmProcess(num_train_timesteps=50))
    assert process.step_times().tolist() == list(range(51))
    assert (process.t_min, process.t_max) == (1, 50)
    assert process.network_time(torch.tensor([1, 50])).tolist() == [0, 49]
    share = torch.arange(50, dtype=torch.float64) / 50
    for offset in (1e-9, 0.01, 0.02 - 1e-9):  # the 50 steps are equally long
        assert process.time_from_fraction(share + offset).tolist() == list(range(1, 51))
    assert process.time_from_fraction(torch.tensor([math.nextafter(1, 0)], dtype=torch.float64)).tolist() == [50]


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("steps", [50, 1000])
def test_a_chain_is_the_inverse_of_its_own_time(steps, zero_terminal_snr):
    schedule = LinearSchedule(zero_terminal_snr=zero_terminal_snr)
    process = make_process(DdpmProcess(num_train_timesteps=steps, schedule=schedule))
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=0)
    between = torch.arange(1, steps - 1, dtype=torch.float64) + 0.37
    torch.testing.assert_close(process.time(process.log_snr(between)), between, rtol=1e-9, atol=0)
    beyond = torch.tensor([math.inf, 50.0, -math.inf], dtype=torch.float64)
    assert process.time(beyond).tolist() == [1, 1, steps]


@pytest.mark.parametrize("steps", [50, 1000])
def test_a_chains_slope_is_the_derivative_and_at_whole_steps_that_of_the_step(steps):
    """log(alpha^2) is linear over each step: f = log(1 - beta_t) / 2 at t itself and just before it."""
    process = make_process(DdpmProcess(num_train_timesteps=steps, schedule=LinearSchedule()))
    t = torch.arange(1, steps + 1)
    between = t.double() - 0.37
    close(process.dlogsnr_dt(between), derivative(process.log_snr, between), rtol=1e-9)
    log_a = 2 * torch.log(process.alpha(torch.arange(steps + 1)))
    for times in (t, t.double(), between):
        close(process.drift(times), log_a.diff() / 2, rtol=1e-8)
        close(process.squared_diffusion(times), -log_a.diff(), rtol=1e-8)


ends = st.tuples(st.floats(-15, 15), st.floats(-15, 15)).filter(lambda two: two[0] - two[1] > 1)
# densities wide enough that 1 - t has digits at the ends; the narrow ones have a test of their own
log_snr_schedules = st.one_of(
    st.builds(LaplaceSchedule, mean=st.floats(-4, 4), scale=st.floats(0.7, 5)),
    st.builds(EdmSchedule, p_mean=st.floats(-2, 2), p_std=st.floats(1.4, 3)),
    st.just(GeometricSchedule()),
    st.builds(LearnedSchedule, width=st.integers(1, 64)),
    st.builds(CosineSchedule, s=st.floats(1e-3, 1)),
)


@given(st.sampled_from(list(CONTINUOUS)), ends, log_snr_schedules, st.integers(2, 500))
@settings(deadline=None, max_examples=60)
def test_log_snr_falls_strictly_between_any_ends(kind, ends, schedule, steps):
    high, low = ends
    process = make_process(
        CONTINUOUS[kind](log_snr_max=high, log_snr_min=low, schedule=schedule, num_train_timesteps=steps)
    )
    log_snr = process.log_snr(process.step_times()).detach()
    assert float(log_snr[0]) == math.inf
    assert bool((log_snr.diff() < 0).all())
    assert bool(torch.isfinite(log_snr[1:]).all())
    assert float(log_snr[1]) == pytest.approx(high, abs=1e-8)
    rounding = 2**-53 * abs(float(process.dlogsnr_dt(torch.tensor([process.t_max], dtype=torch.float64)).detach()))
    assert float(log_snr[-1]) == pytest.approx(low, abs=1e-8 + rounding)
    assert bool((process.squared_diffusion(process.step_times()[1:-1]) > 0).all())


@pytest.mark.parametrize(
    "schedule", [LaplaceSchedule(scale=0.2), EdmSchedule(p_std=0.4), EdmSchedule(p_mean=2.0, p_std=0.7)]
)
@pytest.mark.parametrize("config", [VpProcess, DdpmProcess])
def test_a_density_too_narrow_for_float64_stops_where_it_is_finite(config, schedule):
    """Where 1 - t has no digits left, not at an infinite log-SNR; the least noise keeps all of its digits."""
    process = make_process(config(schedule=schedule))
    log_snr = process.log_snr(process.step_times())
    assert bool(torch.isfinite(log_snr[1:]).all())
    assert float(log_snr[1]) == pytest.approx(13.3, abs=1e-8)
    assert float(log_snr[-1]) >= -13.3


def test_ends_beyond_a_schedule_are_refused():
    message = r"process\.schedule: log-SNR must fall, finite; over t = 1 to 1 .* bring process\.log_snr_max"
    with pytest.raises(ValueError, match=message):
        make_process(VpProcess(log_snr_max=-20.0, log_snr_min=-21.0))


@pytest.mark.parametrize("kind", ["ddpm", *CONTINUOUS])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_make_process_makes_what_is_named(kind, variance):
    config = TypeAdapter(ProcessConfig).validate_python({"kind": kind, "reverse_variance": variance})
    process = make_process(config)
    assert isinstance(process, Chain) == (kind == "ddpm")
    assert type(process).__name__.lower() == {"ddpm": "chain", "sub_vp": "subvp"}.get(kind, kind)
    assert process.reverse_variance == variance
    assert process.num_steps == 1000


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_betas_outside_the_open_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        Chain(torch.tensor([0.1, bad, 0.2]))


def test_the_last_beta_alone_may_be_one():
    process = Chain(torch.tensor([0.1, 0.2, 1.0]))
    t = torch.tensor([3])
    assert (float(process.log_snr(t)), float(process.alpha(t)), float(process.sigma(t))) == (-math.inf, 0, 1)


@pytest.mark.parametrize("log_snr", [19.0, 20.5, 25.0, 30.0])
def test_sub_vp_keeps_its_precision_where_hardly_any_noise_is_left(log_snr):
    vp, sub_vp = make_process(VpProcess(log_snr_max=31)), make_process(SubVpProcess(log_snr_max=62))
    t = vp.time(torch.tensor([log_snr], dtype=torch.float64))
    torch.testing.assert_close(sub_vp.sigma(t), vp.sigma(t) ** 2, rtol=1e-13, atol=0)
