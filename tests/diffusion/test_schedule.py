"""Equations (1)-(4): the tables against 50-digit arithmetic, published values and the continuous limit."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.config import (
    CosineSchedule,
    LinearSchedule,
    ProcessConfig,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    TableSchedule,
)
from diffusion.likelihood import bits_per_dim, prior_kl
from diffusion.schedule import Schedule, betas, rows

CONFIGS = [
    ProcessConfig(schedule=kind(), num_train_timesteps=steps)
    for kind in (LinearSchedule, CosineSchedule, QuadraticSchedule, ScaledLinearSchedule, SigmoidSchedule)
    for steps in (21, 1000, 4000)
]
beta_tables = st.lists(st.floats(1e-7, 0.999), min_size=2, max_size=60).map(
    lambda b: torch.tensor(b, dtype=torch.float64)
)


def name(config: ProcessConfig) -> str:
    return f"{config.schedule.kind}-{config.num_train_timesteps}"


def test_linear_1000_ends_at_the_published_value():
    schedule = Schedule.from_config(ProcessConfig(schedule=LinearSchedule()))
    assert float(schedule.alpha[-1] ** 2) == pytest.approx(4.0358e-5, abs=5e-10)


def test_linear_1000_prior_term_of_uniform_data():
    schedule = Schedule.from_config(ProcessConfig(schedule=LinearSchedule()))
    x_0 = torch.full((1, 3, 4, 4), math.sqrt(1 / 3), dtype=torch.float64)
    assert float(bits_per_dim(prior_kl(schedule, x_0), 48)) == pytest.approx(9.7e-6, abs=5e-8)


@pytest.mark.parametrize(
    ("schedule", "log_snr"), [(LinearSchedule(), -10.1), (CosineSchedule(), -19.8), (QuadraticSchedule(), -7.2)]
)
def test_log_snr_at_the_end_of_each_schedule(schedule, log_snr):
    assert float(Schedule.from_config(ProcessConfig(schedule=schedule)).log_snr[-1]) == pytest.approx(log_snr, abs=0.05)


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
    torch.testing.assert_close(
        betas(ProcessConfig(schedule=schedule)), expected, rtol=1e-4, atol=3e-7
    )  # theirs are fp32


@pytest.mark.parametrize("kind", [LinearSchedule, QuadraticSchedule, ScaledLinearSchedule, SigmoidSchedule])
def test_the_ends_do_not_depend_on_the_number_of_steps(kind):
    coarse, fine = (
        Schedule.from_config(ProcessConfig(schedule=kind(), num_train_timesteps=steps)) for steps in (1000, 10_000)
    )
    assert float(coarse.log_snr[-1]) == pytest.approx(float(fine.log_snr[-1]), rel=0.02)


def test_a_table_of_ones_own_is_the_schedule():
    table = betas(ProcessConfig(num_train_timesteps=50))
    config = ProcessConfig(num_train_timesteps=50, schedule=TableSchedule(betas=tuple(table.tolist())))
    assert torch.equal(betas(config), table)
    with pytest.raises(
        ValueError, match=r"schedule\.betas has 50 entries; allowed: one per step, num_train_timesteps = 51"
    ):
        ProcessConfig(num_train_timesteps=51, schedule=config.schedule)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_tables_keep_full_relative_precision_where_sigma_vanishes_and_where_alpha_does(config):
    """1 - alphas_cumprod loses 4 digits at t = 1 when computed by subtraction; here only the sum's rounding is lost."""
    table, schedule = betas(config), Schedule.from_config(config)
    with mpmath.workdps(50):
        product = mpmath.mpf(1)
        for t, beta in enumerate(table.tolist(), start=1):
            product *= 1 - mpmath.mpf(beta)
            if t in (1, 2, 5, len(table) // 2, len(table)):
                assert float(schedule.sigma[t]) == pytest.approx(float(mpmath.sqrt(1 - product)), rel=1e-13, abs=0)
                assert float(schedule.alpha[t]) == pytest.approx(float(mpmath.sqrt(product)), rel=1e-12, abs=0)
                assert float(schedule.log_snr[t]) == pytest.approx(
                    float(mpmath.log(product / (1 - product))), abs=2e-12
                )


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_cosine_follows_its_formula_up_to_the_clip(steps):
    schedule = Schedule.from_config(ProcessConfig(schedule=CosineSchedule(), num_train_timesteps=steps))
    with mpmath.workdps(40):
        s = mpmath.mpf(0.008)

        def f(t):
            return mpmath.cos((mpmath.mpf(t) / steps + s) / (1 + s) * mpmath.pi / 2) ** 2

        for t in (1, 2, steps // 2, steps - 1):
            assert float(schedule.alpha[t] ** 2) == pytest.approx(float(f(t) / f(0)), rel=1e-9, abs=0)
            assert float(schedule.sigma[t] ** 2) == pytest.approx(float(1 - f(t) / f(0)), rel=1e-9, abs=0)
    assert float(betas(ProcessConfig(num_train_timesteps=steps))[-1]) == 0.999


def test_linear_betas_are_an_even_grid_scaled_by_the_number_of_steps():
    table = betas(ProcessConfig(schedule=LinearSchedule(beta_start=1e-4, beta_end=0.02), num_train_timesteps=2000))
    assert float(table[0]) == 0.5e-4
    assert float(table[-1]) == pytest.approx(0.01, rel=1e-15, abs=0)
    torch.testing.assert_close(table.diff(), table.diff()[:1].expand(1999), rtol=1e-9, atol=0)


def test_linear_approaches_the_vp_sde_as_one_over_n():
    """Theory statement 4, for betas on a linspace grid: max |discrete - continuous| N -> 0.81."""
    gaps = []
    for steps in (100, 1000, 10000):
        schedule = Schedule.from_config(ProcessConfig(schedule=LinearSchedule(), num_train_timesteps=steps))
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        gaps.append(float((schedule.alpha**2 - torch.exp(-(0.1 * time + 19.9 * time**2 / 2))).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(10, abs=0.5)
    assert gaps[1] / gaps[2] == pytest.approx(10, abs=0.5)
    assert gaps[2] * 10000 == pytest.approx(0.81, abs=0.01)


@given(beta_tables)
@settings(deadline=None)
def test_log_snr_falls_strictly_from_infinity_and_variance_is_preserved(table):
    schedule = Schedule(table)
    assert float(schedule.log_snr[0]) == math.inf
    assert bool((schedule.log_snr.diff() < 0).all())
    torch.testing.assert_close(
        schedule.alpha**2 + schedule.sigma**2, torch.ones(len(table) + 1, dtype=torch.float64), rtol=0, atol=1e-15
    )
    torch.testing.assert_close(
        schedule.log_snr[1:], 2 * (schedule.alpha / schedule.sigma).log()[1:], rtol=1e-9, atol=1e-9
    )


@given(
    st.integers(2, 3000),
    st.one_of(
        st.builds(LinearSchedule, beta_start=st.floats(1e-6, 1e-3), beta_end=st.floats(1e-3, 1.9e-3)),
        st.builds(CosineSchedule, s=st.floats(1e-4, 1.0), max_beta=st.floats(0.01, 0.9999)),
    ),
)
@settings(deadline=None, max_examples=50)
def test_every_valid_configuration_gives_a_strictly_decreasing_log_snr(steps, schedule_config):
    schedule = Schedule.from_config(ProcessConfig(num_train_timesteps=steps, schedule=schedule_config))
    assert schedule.num_steps == steps
    assert bool((schedule.log_snr.diff() < 0).all())
    assert bool(torch.isfinite(schedule.log_snr[1:]).all())


@given(beta_tables, st.data())
@settings(deadline=None)
def test_transition_variance_of_one_step_is_beta_and_of_two_composes(table, data):
    """Up to the rounding of log alpha, a sum of at most 60 terms of at most 7: 60 * 2^-53 * 420 = 2.8e-12."""
    schedule, rounding = Schedule(table), 3e-12
    r, s, t = sorted(data.draw(st.lists(st.integers(0, len(table)), min_size=3, max_size=3, unique=True)))
    torch.testing.assert_close(
        schedule.transition_variance(torch.arange(len(table)), torch.arange(1, len(table) + 1)),
        table,
        rtol=1e-10,
        atol=rounding,
    )
    variance = {
        pair: float(schedule.transition_variance(torch.tensor(pair[0]), torch.tensor(pair[1])))
        for pair in ((r, s), (s, t), (r, t))
    }
    assert variance[r, t] == pytest.approx(
        variance[s, t] + (1 - variance[s, t]) * variance[r, s], rel=1e-10, abs=rounding
    )


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_betas_outside_the_open_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        Schedule(torch.tensor([0.1, bad, 0.2]))


def test_rows_broadcasts_over_images_in_their_type():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    like = torch.ones(2, 3, 4, 5)
    result = rows(values, like) * like
    assert result.dtype == torch.float32
    assert torch.equal(result[0], torch.ones(3, 4, 5))
    assert torch.equal(result[1], torch.full((3, 4, 5), 2.0))
