"""The Gaussian kernels against Bayes' rule and the composition of Gaussians, for any pair of steps."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.chain import ReverseVariance, diffuse, posterior, reverse_variance
from diffusion.config import CosineSchedule, LinearSchedule, ProcessConfig
from diffusion.gaussian import GaussianData
from diffusion.schedule import Schedule, betas

STEPS = 1000
SCHEDULES = {
    kind().kind: Schedule.from_config(ProcessConfig(num_train_timesteps=STEPS, schedule=kind()))
    for kind in (LinearSchedule, CosineSchedule)
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def pairs(s_min: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs s < t: neighbours at both ends and in the middle, and long skips."""
    s = torch.tensor([0, 0, 0, 1, 1, 1, 2, 10, 499, 500, 998, 999])
    t = torch.tensor([1, 2, 1000, 2, 3, 1000, 3, 400, 500, 1000, 999, 1000])
    keep = s >= s_min
    return s[keep], t[keep]


@every_schedule
def test_posterior_is_bayes_rule(schedule):
    """N(x_s; alpha_s x_0, sigma_s^2) N(x_t; alpha_ts x_s, sigma_ts^2): precisions add, precision-weighted means add."""
    s, t = pairs(s_min=1)
    alpha_ts = schedule.alpha[t] / schedule.alpha[s]
    variance_ts = schedule.sigma[t] ** 2 - alpha_ts**2 * schedule.sigma[s] ** 2
    precision = 1 / schedule.sigma[s] ** 2 + alpha_ts**2 / variance_ts
    q = posterior(schedule, s, t)
    torch.testing.assert_close(q.variance, 1 / precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.coef_x_0, schedule.alpha[s] / schedule.sigma[s] ** 2 / precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.coef_x_t, alpha_ts / variance_ts / precision, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (1, 3), (2, 1000), (998, 1000), (999, 1000)])
@every_schedule
def test_posterior_keeps_its_precision_against_fifty_digits(schedule, s, t):
    with mpmath.workdps(50):
        table = [
            mpmath.mpf(b)
            for b in (schedule.transition_variance(torch.arange(STEPS), torch.arange(1, STEPS + 1))).tolist()
        ]
        log_s, log_t = (
            mpmath.fsum(mpmath.log1p(-b) for b in table[:s]),
            mpmath.fsum(mpmath.log1p(-b) for b in table[:t]),
        )
        v_s, v_t, v_ts = -mpmath.expm1(log_s), -mpmath.expm1(log_t), -mpmath.expm1(log_t - log_s)
        expected = [mpmath.exp((log_t - log_s) / 2) * v_s / v_t, mpmath.exp(log_s / 2) * v_ts / v_t, v_ts * v_s / v_t]
    q = posterior(schedule, torch.tensor([s]), torch.tensor([t]))
    found = [float(q.coef_x_t), float(q.coef_x_0), float(q.variance)]
    assert found == pytest.approx([float(value) for value in expected], rel=1e-9, abs=0)


@every_schedule
def test_the_kernels_compose_to_the_marginals(schedule):
    """q(x_t | x_s) q(x_s | x_0) = q(x_t | x_0), and the posterior averaged over q(x_t | x_0) is q(x_s | x_0)."""
    s, t = pairs()
    variance_ts = schedule.transition_variance(s, t)
    torch.testing.assert_close(
        (1 - variance_ts) * schedule.sigma[s] ** 2 + variance_ts, schedule.sigma[t] ** 2, rtol=1e-12, atol=0
    )
    torch.testing.assert_close((1 - variance_ts).sqrt() * schedule.alpha[s], schedule.alpha[t], rtol=1e-7, atol=0)
    q = posterior(schedule, s, t)
    torch.testing.assert_close(q.coef_x_t * schedule.alpha[t] + q.coef_x_0, schedule.alpha[s], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        q.coef_x_t**2 * schedule.sigma[t] ** 2 + q.variance, schedule.sigma[s] ** 2, rtol=1e-12, atol=0
    )


@given(st.lists(st.floats(1e-5, 0.99), min_size=2, max_size=30), st.data())
@settings(deadline=None)
def test_the_posterior_of_any_chain_averages_to_its_marginal(table, data):
    schedule = Schedule(torch.tensor(table, dtype=torch.float64))
    s, t = (
        torch.tensor([i])
        for i in sorted(data.draw(st.lists(st.integers(0, len(table)), min_size=2, max_size=2, unique=True)))
    )
    q = posterior(schedule, s, t)
    assert float(q.coef_x_t * schedule.alpha[t] + q.coef_x_0) == pytest.approx(
        float(schedule.alpha[s]), rel=1e-10, abs=0
    )
    assert float(q.coef_x_t**2 * schedule.sigma[t] ** 2 + q.variance) == pytest.approx(
        float(schedule.sigma[s] ** 2), rel=1e-10
    )


@every_schedule
def test_at_s_0_the_posterior_is_x_0_itself(schedule):
    q = posterior(schedule, torch.zeros(3, dtype=torch.int64), torch.tensor([1, 7, STEPS]))
    x_t, x_0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.3, -1.0]]).expand(3, 2)
    torch.testing.assert_close(q.mean(x_t, x_0), x_0, rtol=0, atol=1e-7)
    assert q.variance.tolist() == [0, 0, 0]


@every_schedule
def test_reverse_variances_are_the_true_ones_at_the_two_limits_of_the_data(schedule):
    """Var(x_s | x_t) is beta-tilde for data that are a point, beta for standard normal data (Ho et al. 2020, 3.2)."""
    s, t = pairs(s_min=1)
    q = posterior(schedule, s, t)
    limits: list[tuple[float, ReverseVariance]] = [(0.0, "beta_tilde"), (1.0, "beta")]
    for variance, kind in limits:
        exact = q.variance + q.coef_x_0**2 * GaussianData(0, variance).x0_variance(schedule, t)
        torch.testing.assert_close(reverse_variance(schedule, s, t, kind), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_beta_is_the_table_beta_and_beta_tilde_stays_below_it(kind):
    config = ProcessConfig(schedule=kind())
    schedule, t = Schedule.from_config(config), torch.arange(1, STEPS + 1)
    beta = reverse_variance(schedule, t - 1, t, "beta")
    tilde = reverse_variance(schedule, t - 1, t, "beta_tilde")
    torch.testing.assert_close(beta, betas(config), rtol=1e-8, atol=0)
    assert bool((tilde[1:] < beta[1:]).all())
    assert bool((tilde > 0).all())
    torch.testing.assert_close(
        tilde[1:], (schedule.sigma[t - 1] ** 2 / schedule.sigma[t] ** 2 * beta)[1:], rtol=1e-12, atol=0
    )
    assert float(tilde[0]) == float(tilde[1])


@every_schedule
def test_diffuse_has_the_coefficients_of_each_row(schedule):
    t = torch.tensor([1, 500, 1000])
    x_0, eps = torch.full((3, 1, 2, 2), 2.0, dtype=torch.float64), torch.full((3, 1, 2, 2), -3.0, dtype=torch.float64)
    expected = (2 * schedule.alpha[t] - 3 * schedule.sigma[t])[:, None, None, None].expand(3, 1, 2, 2)
    torch.testing.assert_close(diffuse(schedule, x_0, t, eps), expected, rtol=1e-15, atol=0)
