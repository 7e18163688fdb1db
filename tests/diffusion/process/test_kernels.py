"""The Gaussian kernels against Bayes' rule and the composition of Gaussians, for any pair of steps."""

import mpmath
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import CosineSchedule, DdpmProcess, LinearSchedule, SubVpProcess, VeProcess, VpProcess
from diffusion.gaussian import GaussianData
from diffusion.process.betas import betas
from diffusion.process.kernels import (
    diffuse,
    learned_reverse_variance,
    posterior,
    reverse_variance,
    transition_variance,
)
from diffusion.process.sde import Chain, Process, make_process

STEPS = 1000
CHAINS = {
    kind().kind: make_process(DdpmProcess(num_train_timesteps=STEPS, schedule=kind()))
    for kind in (LinearSchedule, CosineSchedule)
}
CONTINUOUS = {config.kind: make_process(config) for config in (VpProcess(), SubVpProcess(), VeProcess())}
every_chain = pytest.mark.parametrize("process", CHAINS.values(), ids=CHAINS)
every_process = pytest.mark.parametrize("process", [*CHAINS.values(), *CONTINUOUS.values()], ids=[*CHAINS, *CONTINUOUS])


def pairs_of(process: Process, s_min: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pairs as steps of a chain, or as times in (0, 1]."""
    s, t = pairs(s_min)
    return (s, t) if isinstance(process, Chain) else (s.double() / 1000, t.double() / 1000)


def pairs(s_min: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs s < t: neighbours at both ends and in the middle, and long skips."""
    s = torch.tensor([0, 0, 0, 1, 1, 1, 2, 10, 499, 500, 998, 999])
    t = torch.tensor([1, 2, 1000, 2, 3, 1000, 3, 400, 500, 1000, 999, 1000])
    keep = s >= s_min
    return s[keep], t[keep]


@every_process
def test_posterior_is_bayes_rule(process):
    """N(x_s; alpha_s x_0, sigma_s^2) N(x_t; alpha_ts x_s, sigma_ts^2): precisions add, precision-weighted means add."""
    s, t = pairs_of(process, s_min=1)
    alpha_ts = process.alpha(t) / process.alpha(s)
    variance_ts = process.sigma(t) ** 2 - alpha_ts**2 * process.sigma(s) ** 2
    precision = 1 / process.sigma(s) ** 2 + alpha_ts**2 / variance_ts
    q = posterior(process, s, t)
    torch.testing.assert_close(q.variance, 1 / precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.coef_x_0, process.alpha(s) / process.sigma(s) ** 2 / precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.coef_x_t, alpha_ts / variance_ts / precision, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (1, 3), (2, 1000), (998, 1000), (999, 1000)])
@every_chain
def test_posterior_keeps_its_precision_against_fifty_digits(process, s, t):
    with mpmath.workdps(50):
        table = [
            mpmath.mpf(b)
            for b in (transition_variance(process, torch.arange(STEPS), torch.arange(1, STEPS + 1))).tolist()
        ]
        log_s, log_t = (
            mpmath.fsum(mpmath.log1p(-b) for b in table[:s]),
            mpmath.fsum(mpmath.log1p(-b) for b in table[:t]),
        )
        v_s, v_t, v_ts = -mpmath.expm1(log_s), -mpmath.expm1(log_t), -mpmath.expm1(log_t - log_s)
        expected = [mpmath.exp((log_t - log_s) / 2) * v_s / v_t, mpmath.exp(log_s / 2) * v_ts / v_t, v_ts * v_s / v_t]
    q = posterior(process, torch.tensor([s]), torch.tensor([t]))
    actual = [float(q.coef_x_t), float(q.coef_x_0), float(q.variance)]
    assert actual == pytest.approx([float(value) for value in expected], rel=1e-9, abs=0)


@every_process
def test_the_kernels_compose_to_the_marginals(process):
    """q(x_t | x_s) q(x_s | x_0) = q(x_t | x_0), and the posterior averaged over q(x_t | x_0) is q(x_s | x_0)."""
    s, t = pairs_of(process)
    variance_ts, alpha_ts = transition_variance(process, s, t), process.alpha(t) / process.alpha(s)
    torch.testing.assert_close(
        alpha_ts**2 * process.sigma(s) ** 2 + variance_ts, process.sigma(t) ** 2, rtol=1e-10, atol=0
    )
    q = posterior(process, s, t)
    torch.testing.assert_close(q.coef_x_t * process.alpha(t) + q.coef_x_0, process.alpha(s), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        q.coef_x_t**2 * process.sigma(t) ** 2 + q.variance, process.sigma(s) ** 2, rtol=1e-12, atol=0
    )


@given(st.lists(st.floats(1e-5, 0.99), min_size=2, max_size=30), st.data())
@settings(deadline=None)
def test_the_posterior_of_any_chain_averages_to_its_marginal(table, data):
    process = Chain(torch.tensor(table, dtype=torch.float64))
    s, t = (
        torch.tensor([i])
        for i in sorted(data.draw(st.lists(st.integers(0, len(table)), min_size=2, max_size=2, unique=True)))
    )
    q = posterior(process, s, t)
    assert float(q.coef_x_t * process.alpha(t) + q.coef_x_0) == pytest.approx(float(process.alpha(s)), rel=1e-10, abs=0)
    assert float(q.coef_x_t**2 * process.sigma(t) ** 2 + q.variance) == pytest.approx(
        float(process.sigma(s) ** 2), rel=1e-10
    )


@every_chain
def test_a_step_keeps_the_share_of_the_signal_that_it_does_not_replace_by_noise(process):
    """Variance-preserving: alpha_t^2 / alpha_s^2 = 1 - sigma_{t|s}^2."""
    s, t = pairs()
    kept = (1 - transition_variance(process, s, t)).sqrt()
    torch.testing.assert_close(kept * process.alpha(s), process.alpha(t), rtol=1e-7, atol=0)


@every_process
def test_at_s_0_the_posterior_is_x_0_itself(process):
    t = torch.tensor([1, 7, STEPS]) if isinstance(process, Chain) else torch.tensor([0.01, 0.7, 1.0])
    q = posterior(process, torch.zeros_like(t), t)
    x_t, x_0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.3, -1.0]]).expand(3, 2)
    torch.testing.assert_close(q.mean(x_t, x_0), x_0, rtol=0, atol=1e-7)
    assert q.variance.tolist() == [0, 0, 0]


@pytest.mark.parametrize("process", [*CHAINS.values(), CONTINUOUS["vp"]], ids=[*CHAINS, "vp"])
def test_reverse_variances_are_the_true_ones_at_the_two_limits_of_the_data(process):
    """Var(x_s | x_t) is beta-tilde for data that are a point, beta for standard normal data (Ho et al. 2020, 3.2)."""
    s, t = pairs_of(process, s_min=1)
    q = posterior(process, s, t)
    limits = [(0.0, "beta_tilde"), (1.0, "beta")]
    for variance, kind in limits:
        exact = q.variance + q.coef_x_0**2 * GaussianData(0, variance).x0_variance(process, t)
        torch.testing.assert_close(reverse_variance(process, s, t, kind), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_beta_is_the_table_beta_and_beta_tilde_stays_below_it(kind):
    config = DdpmProcess(schedule=kind())
    process, t = make_process(config), torch.arange(1, STEPS + 1)
    beta = reverse_variance(process, t - 1, t, "beta")
    tilde = reverse_variance(process, t - 1, t, "beta_tilde")
    torch.testing.assert_close(beta, betas(config), rtol=1e-8, atol=0)
    assert bool((tilde[1:] < beta[1:]).all())
    assert bool((tilde > 0).all())
    torch.testing.assert_close(
        tilde[1:], (process.sigma(t - 1) ** 2 / process.sigma(t) ** 2 * beta)[1:], rtol=1e-12, atol=0
    )
    assert float(tilde[0]) == float(tilde[1])


@pytest.mark.parametrize("process", CONTINUOUS.values(), ids=CONTINUOUS)
def test_at_data_beta_tilde_is_that_of_the_second_step(process):
    first, second = process.step_times()[1:3]
    at_data = reverse_variance(process, torch.zeros(1, dtype=torch.float64), first[None], "beta_tilde")
    assert float(at_data) == float(posterior(process, first, second).variance) > 0


@every_process
def test_a_learned_reverse_variance_goes_from_beta_tilde_to_beta(process):
    """Nichol & Dhariwal (2021), equation 15: geometric between the two, for every element by itself."""
    s, t = (time[-3:].clone() for time in pairs_of(process))
    s[0], t[0] = process.step_times()[:2].to(s)
    beta, tilde = (reverse_variance(process, s, t, kind) for kind in ("beta", "beta_tilde"))
    interpolation = torch.tensor([-1.0, 1.0, 0.0, 0.4, 2.0]).expand(3, 5).reshape(3, 1, 5)
    actual = learned_reverse_variance(process, s, t, interpolation)
    assert actual.dtype == torch.float64
    share = torch.tensor([0.0, 1.0, 0.5, 0.7, 1.5], dtype=torch.float64)
    expected = beta[:, None] ** share * tilde[:, None] ** (1 - share)
    torch.testing.assert_close(actual[:, 0], expected, rtol=1e-6, atol=0)  # 0.4 is float32
    torch.testing.assert_close(actual[:, 0, :3], expected[:, :3], rtol=1e-12, atol=0)


@every_process
def test_diffuse_has_the_coefficients_of_each_row(process):
    t = torch.tensor([1, 500, 1000]) if isinstance(process, Chain) else torch.tensor([0.001, 0.5, 1.0])
    x_0, eps = torch.full((3, 1, 2, 2), 2.0, dtype=torch.float64), torch.full((3, 1, 2, 2), -3.0, dtype=torch.float64)
    expected = (2 * process.alpha(t) - 3 * process.sigma(t))[:, None, None, None].expand(3, 1, 2, 2)
    torch.testing.assert_close(diffuse(process, x_0, t, eps), expected, rtol=1e-15, atol=0)
