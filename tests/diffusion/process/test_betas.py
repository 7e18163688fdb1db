"""Equations (1)-(4): the chain's tables against 50-digit arithmetic, published values, diffusers and the limit."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    EdmSchedule,
    GeometricSchedule,
    LaplaceSchedule,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    TableSchedule,
    VpProcess,
)
from diffusion.likelihood.discrete import bits_per_dim, prior_kl
from diffusion.process.betas import betas, rescale_to_zero_terminal_snr
from diffusion.process.kernels import transition_variance
from diffusion.process.make_schedule import make_schedule
from diffusion.process.sde import Chain, Process, make_process

BETA_KINDS = (LinearSchedule, QuadraticSchedule, ScaledLinearSchedule, SigmoidSchedule)
CONFIGS = [
    DdpmProcess(schedule=kind(), num_train_timesteps=steps)
    for kind in (*BETA_KINDS, CosineSchedule)
    for steps in (21, 1000, 4000)
]
beta_tables = st.lists(st.floats(1e-7, 0.999), min_size=2, max_size=60).map(
    lambda b: torch.tensor(b, dtype=torch.float64)
)


def name(config: DdpmProcess) -> str:
    return f"{config.schedule.kind}-{config.num_train_timesteps}"


def steps_of(process: Process) -> torch.Tensor:
    return torch.arange(process.num_steps + 1)


def test_linear_1000_ends_at_the_published_value():
    process = make_process(DdpmProcess(schedule=LinearSchedule()))
    assert float(process.alpha(torch.tensor(1000)) ** 2) == pytest.approx(4.0358e-5, abs=5e-10)


def test_linear_1000_prior_term_of_uniform_data():
    process = make_process(DdpmProcess(schedule=LinearSchedule()))
    x_0 = torch.full((1, 3, 4, 4), math.sqrt(1 / 3), dtype=torch.float64)
    assert float(bits_per_dim(prior_kl(process, x_0), 48)) == pytest.approx(9.7e-6, abs=5e-8)


@pytest.mark.parametrize(
    ("schedule", "log_snr"), [(LinearSchedule(), -10.1), (CosineSchedule(), -19.8), (QuadraticSchedule(), -7.2)]
)
def test_log_snr_at_the_end_of_each_schedule(schedule, log_snr):
    process = make_process(DdpmProcess(schedule=schedule))
    assert float(process.log_snr(torch.tensor(1000))) == pytest.approx(log_snr, abs=0.05)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (LinearSchedule(), {"beta_schedule": "linear"}),
        (QuadraticSchedule(), {"beta_schedule": "scaled_linear"}),
        (ScaledLinearSchedule(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (SigmoidSchedule(), {"beta_schedule": "sigmoid"}),
        (CosineSchedule(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_betas_are_those_of_diffusers(schedule, theirs):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    expected = DDPMScheduler(1000, **theirs).betas.double()
    torch.testing.assert_close(betas(DdpmProcess(schedule=schedule)), expected, rtol=1e-4, atol=3e-7)  # fp32


@pytest.mark.parametrize("kind", BETA_KINDS)
def test_the_ends_do_not_depend_on_the_number_of_steps(kind):
    coarse, fine = (make_process(DdpmProcess(schedule=kind(), num_train_timesteps=steps)) for steps in (1000, 10_000))
    ends = [float(process.log_snr(torch.tensor(process.num_steps))) for process in (coarse, fine)]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_a_table_of_ones_own_is_the_schedule():
    table = betas(DdpmProcess(num_train_timesteps=50))
    config = DdpmProcess(num_train_timesteps=50, schedule=TableSchedule(betas=tuple(table.tolist())))
    assert torch.equal(betas(config), table)


@pytest.mark.parametrize("process", [DdpmProcess, VpProcess])
def test_a_table_of_another_length_is_refused(process):
    with pytest.raises(
        ValueError, match=r"schedule\.betas has 3 entries; allowed: one per step, num_train_timesteps = 51"
    ):
        process(num_train_timesteps=51, schedule=TableSchedule(betas=(0.1, 0.2, 0.3)))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_tables_keep_full_relative_precision_where_sigma_vanishes_and_where_alpha_does(config):
    """1 - alphas_cumprod loses 4 digits at t = 1 when computed by subtraction; here only the sum's rounding is lost."""
    table, process = betas(config), make_process(config)
    with mpmath.workdps(50):
        product = mpmath.mpf(1)
        for step, beta in enumerate(table.tolist(), start=1):
            product *= 1 - mpmath.mpf(beta)
            if step in (1, 2, 5, len(table) // 2, len(table)):
                t = torch.tensor(step)
                assert float(process.sigma(t)) == pytest.approx(float(mpmath.sqrt(1 - product)), rel=1e-12, abs=0)
                assert float(process.alpha(t)) == pytest.approx(float(mpmath.sqrt(product)), rel=1e-12, abs=0)
                assert float(process.log_snr(t)) == pytest.approx(float(mpmath.log(product / (1 - product))), abs=2e-12)


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_cosine_follows_its_formula_up_to_the_clip(steps):
    process = make_process(DdpmProcess(schedule=CosineSchedule(), num_train_timesteps=steps))
    with mpmath.workdps(40):
        s = mpmath.mpf(0.008)

        def f(t):
            return mpmath.cos((mpmath.mpf(t) / steps + s) / (1 + s) * mpmath.pi / 2) ** 2

        for step in (1, 2, steps // 2, steps - 1):
            t = torch.tensor(step)
            assert float(process.alpha(t) ** 2) == pytest.approx(float(f(step) / f(0)), rel=1e-9, abs=0)
            assert float(process.sigma(t) ** 2) == pytest.approx(float(1 - f(step) / f(0)), rel=1e-9, abs=0)
    assert float(betas(DdpmProcess(num_train_timesteps=steps))[-1]) == 0.999


def test_linear_betas_are_an_even_grid_scaled_by_the_number_of_steps():
    table = betas(DdpmProcess(schedule=LinearSchedule(beta_start=1e-4, beta_end=0.02), num_train_timesteps=2000))
    assert float(table[0]) == 0.5e-4
    assert float(table[-1]) == pytest.approx(0.01, rel=1e-15, abs=0)
    torch.testing.assert_close(table.diff(), table.diff()[:1].expand(1999), rtol=1e-9, atol=0)


def test_linear_approaches_the_vp_sde_as_one_over_n():
    """Theory claim 4, for betas on a linspace grid: max |discrete - continuous| N -> 0.81."""
    gaps = []
    for steps in (100, 1000, 10000):
        process = make_process(DdpmProcess(schedule=LinearSchedule(), num_train_timesteps=steps))
        t = steps_of(process)
        time = t.double() / steps
        gaps.append(float((process.alpha(t) ** 2 - torch.exp(-(0.1 * time + 19.9 * time**2 / 2))).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(10, abs=0.5)
    assert gaps[1] / gaps[2] == pytest.approx(10, abs=0.5)
    assert gaps[2] * 10000 == pytest.approx(0.81, abs=0.01)


@pytest.mark.parametrize("kind", BETA_KINDS)
def test_every_chain_of_betas_approaches_its_schedule_in_continuous_time(kind):
    """As 1 / N: alphas_cumprod of the chain against exp(-integral of beta)."""
    limit, gaps = make_process(VpProcess(schedule=kind())), []
    for steps in (100, 1000, 10_000):
        process = make_process(DdpmProcess(schedule=kind(), num_train_timesteps=steps))
        t = steps_of(process)
        gaps.append(float((process.alpha(t) ** 2 - limit.alpha(t.double() / steps) ** 2).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(10, abs=0.7)
    assert gaps[1] / gaps[2] == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("steps", [100, 1000])
def test_cosines_chain_is_its_schedule_in_continuous_time_up_to_the_clip(steps):
    process = make_process(DdpmProcess(num_train_timesteps=steps))
    t = torch.arange(1, steps)
    expected = make_process(VpProcess(schedule=CosineSchedule())).log_snr(t.double() / steps)
    torch.testing.assert_close(process.log_snr(t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "schedule", [LaplaceSchedule(), EdmSchedule(), GeometricSchedule()], ids=lambda schedule: schedule.kind
)
@pytest.mark.parametrize("steps", [2, 37, 1000])
def test_chains_of_log_snr_schedules_run_between_the_ends_at_even_times(schedule, steps):
    config = DdpmProcess(schedule=schedule, num_train_timesteps=steps, log_snr_max=9.0, log_snr_min=-8.0)
    log_snr = make_process(config).log_snr(torch.arange(1, steps + 1))
    assert log_snr[[0, -1]].tolist() == pytest.approx([9, -8], abs=1e-8)
    time = make_schedule(schedule, 9.0, -8.0).time(log_snr)
    torch.testing.assert_close(time.diff(), time.diff().mean().expand(steps - 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "schedule",
    [
        kind(zero_terminal_snr=True)
        for kind in (*BETA_KINDS, CosineSchedule, LaplaceSchedule, EdmSchedule, GeometricSchedule)
    ],
    ids=lambda schedule: schedule.kind,
)
@pytest.mark.parametrize("steps", [50, 1000])
def test_with_a_terminal_snr_of_zero_the_end_is_noise_and_the_start_as_it_was(schedule, steps):
    """Lin et al. (2024), algorithm 1: alpha_t shifted and scaled, alpha_1 kept."""
    config = DdpmProcess(schedule=schedule, num_train_timesteps=steps)
    process = make_process(config)
    before = make_process(
        config.model_copy(update={"schedule": schedule.model_copy(update={"zero_terminal_snr": False})})
    )
    t = torch.arange(1, steps + 1)
    assert float(process.alpha(t[-1])) == 0
    assert float(process.sigma(t[-1])) == 1
    assert float(betas(config)[-1]) == 1
    old = before.alpha(t)
    expected = (old - old[-1]) * old[0] / (old[0] - old[-1])
    torch.testing.assert_close(process.alpha(t), expected, rtol=1e-9, atol=1e-15)
    assert float(process.alpha(t[0])) == pytest.approx(float(old[0]), rel=1e-14, abs=0)
    assert bool((process.log_snr(t).diff() < 0).all())


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_the_rescaling_is_diffusers(config):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    table = betas(config)
    torch.testing.assert_close(
        rescale_to_zero_terminal_snr(table), rescale_zero_terminal_snr(table), rtol=0, atol=1e-12
    )


@given(beta_tables)
@settings(deadline=None)
def test_log_snr_falls_strictly_from_infinity_and_variance_is_preserved(table):
    process = Chain(table)
    t = steps_of(process)
    log_snr, alpha, sigma = process.log_snr(t), process.alpha(t), process.sigma(t)
    assert float(log_snr[0]) == math.inf
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close(log_snr[1:], 2 * (alpha / sigma).log()[1:], rtol=1e-9, atol=1e-9)


@given(
    st.integers(2, 3000),
    st.one_of(
        st.builds(LinearSchedule, beta_start=st.floats(1e-6, 1e-3), beta_end=st.floats(1e-3, 1.9e-3)),
        st.builds(CosineSchedule, s=st.floats(1e-4, 1.0), max_beta=st.floats(0.01, 0.9999)),
        st.builds(LaplaceSchedule, mean=st.floats(-3, 3), scale=st.floats(0.1, 3)),
        st.builds(EdmSchedule, p_mean=st.floats(-3, 3), p_std=st.floats(0.3, 3)),
        st.just(GeometricSchedule()),
    ),
)
@settings(deadline=None, max_examples=60)
def test_every_valid_configuration_gives_a_strictly_decreasing_log_snr(steps, schedule_config):
    process = make_process(DdpmProcess(num_train_timesteps=steps, schedule=schedule_config))
    log_snr = process.log_snr(torch.arange(steps + 1))
    assert process.num_steps == steps
    assert bool((log_snr.diff() < 0).all())
    assert bool(torch.isfinite(log_snr[1:]).all())


@given(beta_tables, st.data())
@settings(deadline=None)
def test_transition_variance_of_one_step_is_beta_and_of_two_composes(table, data):
    """Up to the rounding of log alpha, a sum of at most 60 terms of at most 7: 60 * 2^-53 * 420 = 2.8e-12."""
    process, rounding = Chain(table), 3e-12
    r, s, t = sorted(data.draw(st.lists(st.integers(0, len(table)), min_size=3, max_size=3, unique=True)))
    steps = torch.arange(1, len(table) + 1)
    torch.testing.assert_close(transition_variance(process, steps - 1, steps), table, rtol=1e-10, atol=rounding)
    variance = {
        pair: float(transition_variance(process, torch.tensor(pair[0]), torch.tensor(pair[1])))
        for pair in ((r, s), (s, t), (r, t))
    }
    assert variance[r, t] == pytest.approx(
        variance[s, t] + (1 - variance[s, t]) * variance[r, s], rel=1e-10, abs=rounding
    )
