"""The discrete variational bound: exact on Gaussian data, a true bound on 8-bit data, and its discretised decoder."""

import math
from typing import Literal

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Normal, kl_divergence

from diffusion.config import CosineSchedule, DdpmProcess, LinearSchedule, SubVpProcess, VeProcess, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData
from diffusion.likelihood.discrete import (
    ReverseKernel,
    bits_per_dim,
    discretised_gaussian_log_prob,
    estimate_vlb,
    prior_kl,
)
from diffusion.process.kernels import learned_reverse_variance, posterior, reverse_variance
from diffusion.process.sde import Chain, Process, make_process
from diffusion.tensors import expand_to

LEVELS = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1


def make_chain(kind: str, steps: int, variance: Literal["beta", "beta_tilde", "learned"] = "beta") -> Process:
    config = {"linear": LinearSchedule(), "cosine": CosineSchedule()}[kind]
    return make_process(DdpmProcess(num_train_timesteps=steps, schedule=config, reverse_variance=variance))


def expected_kl(kernel: ReverseKernel, data: GaussianData) -> torch.Tensor:
    """E[L_{t-1}] for t = 2..T, one dimension: L is quadratic in (x_0, eps), so their sign corners average to it."""
    t = torch.arange(2, kernel.process.num_steps + 1)
    total = torch.zeros(len(t), dtype=torch.float64)
    for x_sign in (-1, 1):
        for eps_sign in (-1, 1):
            x_0 = torch.full((len(t), 1), data.mean + x_sign * data.variance**0.5, dtype=torch.float64)
            total += kernel.diffusion_kl(x_0, t, torch.full_like(x_0, eps_sign)) / 4
    return total


def gaussian_gap(process: Process, data: GaussianData) -> float:
    """VLB - H(x) - KL(q(x_T) || N(0, I)) in nats per dimension, with a Gaussian decoder of variance Sigma_1."""
    kernel = ReverseKernel(data.denoiser(process), clip_x0=False)
    first, zero = torch.tensor([1]), torch.tensor([0])
    decoder = float(reverse_variance(process, zero, first, process.reverse_variance))
    x0_error = float(data.x0_variance(process, first))
    reconstruction = 0.5 * (math.log(2 * math.pi * decoder) + x0_error / decoder)
    prior = float(prior_kl(process, torch.full((1, 1), math.sqrt(data.variance), dtype=torch.float64)))
    marginal = float(data.variance_at(process, torch.tensor([process.num_steps])))
    marginal_kl = 0.5 * (marginal - 1 - math.log(marginal))
    return prior + float(expected_kl(kernel, data).sum()) + reconstruction - data.entropy - marginal_kl


@pytest.mark.parametrize("variance", [0.01, 0.25, 1.0])
@pytest.mark.parametrize(("kind", "steps"), [("linear", 30), ("linear", 1000), ("cosine", 7), ("cosine", 1000)])
def test_with_the_true_reverse_chain_only_the_prior_mismatch_is_left(kind, steps, variance):
    """Claim 1: VLB - H(x) = KL(q(x_T) || N(0, I)), the KLs taken from the code's own posterior and prior."""
    process, data = make_chain(kind, steps), GaussianData(0.0, variance)
    t = torch.arange(2, steps + 1)
    q = posterior(process, t - 1, t)
    spread = q.coef_x_0**2 * data.x0_variance(process, t)
    true_variance = q.variance + spread
    diffusion = (
        0.5 * (torch.log(true_variance / q.variance) - 1 + q.variance / true_variance + spread / true_variance).sum()
    )
    reconstruction = 0.5 * torch.log(2 * math.pi * math.e * data.x0_variance(process, torch.tensor([1])))
    prior = prior_kl(process, torch.full((1, 1), math.sqrt(variance), dtype=torch.float64))
    marginal = data.variance_at(process, torch.tensor([steps]))
    mismatch = 0.5 * (marginal - 1 - torch.log(marginal))
    assert float(prior + diffusion + reconstruction) - data.entropy == pytest.approx(float(mismatch), abs=1e-8)


@pytest.mark.parametrize(("kind", "constant"), [("linear", 1.58), ("cosine", 0.88)])
def test_sigma_beta_costs_a_constant_over_t(kind, constant):
    """Claim 2, at data variance 0.25, in bits."""
    gap = gaussian_gap(make_chain(kind, 4000), GaussianData(0.0, 0.25)) / math.log(2)
    assert gap * 4000 == pytest.approx(constant, rel=0.02, abs=0)


def test_sigma_beta_tilde_does_not_vanish():
    """Claim 2: 0.70 bits at T = 4000, with beta-tilde_1 := beta-tilde_2."""
    gap = gaussian_gap(make_chain("linear", 4000, "beta_tilde"), GaussianData(0.0, 0.25)) / math.log(2)
    assert gap == pytest.approx(0.70, abs=0.005)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_sigma_beta_is_exact_for_standard_normal_data(kind):
    assert gaussian_gap(make_chain(kind, 200), GaussianData(0.0, 1.0)) == pytest.approx(0, abs=1e-10)


def smooth_denoiser(process: Process) -> Denoiser:
    """A wrong but smooth network, elementwise."""
    return Denoiser(lambda x, time, label: torch.sin(2 * x + expand_to(time / 100, x)) * 0.8, process, "epsilon")


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_diffusion_term_is_the_kl_of_the_two_kernels(variance, clip):
    """Against torch.distributions, with both kernels spelled out by their means."""
    process = make_chain("cosine", 50, variance)
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(2, 51)
    x_0, eps = (torch.randn(49, 2, 3, 3, generator=generator, dtype=torch.float64).clamp(-c, c) for c in (1, 9))
    denoiser = smooth_denoiser(process)
    x_t = expand_to(process.alpha(t), x_0) * x_0 + expand_to(process.sigma(t), x_0) * eps
    estimate = (x_t - expand_to(process.sigma(t), x_t) * denoiser.epsilon(x_t, t)) / expand_to(process.alpha(t), x_t)
    q = posterior(process, t - 1, t)
    model_std = expand_to(reverse_variance(process, t - 1, t, variance).sqrt(), x_t)
    exact = Normal(q.mean(x_t, x_0), expand_to(q.variance.sqrt(), x_t))
    model = Normal(q.mean(x_t, estimate.clamp(-1, 1) if clip else estimate), model_std)
    expected = kl_divergence(exact, model).flatten(1).sum(1)
    torch.testing.assert_close(ReverseKernel(denoiser, clip).diffusion_kl(x_0, t, eps), expected, rtol=1e-8, atol=1e-12)


def test_every_step_drawn_once_gives_the_whole_sum():
    process = make_chain("linear", 40)
    kernel = ReverseKernel(smooth_denoiser(process))
    generator = torch.Generator().manual_seed(1)
    x_0 = LEVELS[torch.randint(256, (3, 1, 2, 2), generator=generator)]
    eps = torch.randn(3, 40, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.stack([torch.arange(2, 41).roll(shift) for shift in range(3)])
    vlb = estimate_vlb(kernel, x_0, t, eps)
    for row in range(3):
        image = x_0[row : row + 1]
        terms = [kernel.diffusion_kl(image, t[row, k : k + 1], eps[row, k : k + 1]) for k in range(39)]
        assert float(vlb.diffusion[row]) == pytest.approx(float(sum(terms)), rel=1e-12, abs=0)
        assert float(vlb.reconstruction[row]) == pytest.approx(
            float(kernel.reconstruction_nll(image, eps[row, -1:])), rel=1e-12
        )
    torch.testing.assert_close(vlb.prior, prior_kl(process, x_0), rtol=0, atol=0)
    torch.testing.assert_close(vlb.total, vlb.prior + vlb.diffusion + vlb.reconstruction, rtol=0, atol=0)


def test_prior_term_is_the_kl_to_the_standard_normal():
    process = make_chain("linear", 60)
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 1, 2, 3)
    q_t = Normal(process.alpha(torch.tensor(60)) * x_0, process.sigma(torch.tensor(60)))
    expected = kl_divergence(q_t, Normal(torch.zeros(1, dtype=torch.float64), 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(prior_kl(process, x_0), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_bound_never_claims_more_than_unit_mass(variance):
    """exp(-VLB(x)) <= p(x), so over all 256 values of one pixel it sums to at most 1; a missing term breaks it.

    VLB is an exact expectation here: Gauss-Hermite quadrature over eps, all of t = 2..T.
    """
    process = Chain(torch.tensor([0.02, 0.3, 0.6, 0.9, 0.97], dtype=torch.float64), variance)
    data = GaussianData(0.1, 0.08)
    kernel = ReverseKernel(data.denoiser(process))
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    x_0 = LEVELS.repeat_interleave(80).reshape(-1, 1)
    eps = nodes.repeat(256).reshape(-1, 1)
    rows_of = [kernel.diffusion_kl(x_0, torch.full((len(x_0),), t), eps) for t in range(2, 6)]
    per_node = prior_kl(process, x_0) + sum(rows_of) + kernel.reconstruction_nll(x_0, eps)
    vlb = (per_node.reshape(256, 80) * weights).sum(1)
    mass = float(torch.exp(-vlb).sum())
    assert 0.5 < mass <= 1.0


stds = st.floats(1e-4, 1e3)


@given(st.floats(-50, 50), stds)
@settings(deadline=None, max_examples=300)
def test_the_256_bins_sum_to_one(mean, std):
    log_p = discretised_gaussian_log_prob(
        LEVELS, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    )
    assert bool((log_p <= 0).all())
    assert float(torch.exp(log_p).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("std", [1e-6, 1e-3, 0.05, 1.0, 1e4])
@pytest.mark.parametrize("mean", [-30.0, -1.0, -0.99, 0.0, 1 / 255, 0.7, 1.0, 30.0])
def test_bins_agree_with_fifty_digits_far_into_the_tails(mean, std):
    levels = [0, 1, 2, 100, 127, 128, 200, 254, 255]
    actual = discretised_gaussian_log_prob(
        LEVELS[levels].float(), torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    )
    with mpmath.workdps(50):
        for level, log_p in zip(levels, actual.tolist(), strict=True):
            centre = mpmath.mpf(float(LEVELS[level].float()))
            half = mpmath.mpf(1 / 255)
            lower = -mpmath.inf if level == 0 else (centre - half - mpmath.mpf(mean)) / mpmath.mpf(std)
            upper = mpmath.inf if level == 255 else (centre + half - mpmath.mpf(mean)) / mpmath.mpf(std)
            if lower > 0:
                lower, upper = -upper, -lower
            mass = (mpmath.erfc(-upper / mpmath.sqrt(2)) - mpmath.erfc(-lower / mpmath.sqrt(2))) / 2
            expected = float(mpmath.log(mass))
            assert log_p == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_decoder_scores_x_1_with_sigma_1():
    process = make_chain("cosine", 100)
    kernel = ReverseKernel(smooth_denoiser(process))
    x_0 = LEVELS[torch.tensor([[0, 13, 128, 255]])]
    eps = torch.tensor([[1.0, -0.5, 0.2, 2.0]], dtype=torch.float64)
    one = torch.tensor([1])
    x_1 = process.alpha(one) * x_0 + process.sigma(one) * eps
    mean = kernel.denoiser.x0(x_1, one).clamp(-1, 1)
    std = math.sqrt(1 - float(process.alpha(one)) ** 2)
    expected = -discretised_gaussian_log_prob(x_0, mean, torch.tensor(std, dtype=torch.float64)).sum()
    assert float(kernel.reconstruction_nll(x_0, eps)) == pytest.approx(float(expected), rel=1e-9, abs=0)


@pytest.mark.parametrize("config", [VpProcess(), SubVpProcess(), VeProcess()], ids=lambda config: config.kind)
def test_prior_term_is_the_kl_to_the_processs_own_prior(config):
    process = make_process(config)
    end = torch.tensor(process.t_max, dtype=torch.float64)
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 1, 2, 3)
    prior = Normal(torch.zeros(1, dtype=torch.float64), process.prior_std)
    expected = kl_divergence(Normal(process.alpha(end) * x_0, process.sigma(end)), prior).flatten(1).sum(1)
    torch.testing.assert_close(prior_kl(process, x_0), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("config", [VpProcess(), SubVpProcess(), VeProcess()], ids=lambda config: config.kind)
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_diffusion_term_on_the_steps_of_continuous_time_is_the_kl_of_the_two_kernels(config, variance):
    process = make_process(config.model_copy(update={"num_train_timesteps": 30, "reverse_variance": variance}))
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(29, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    denoiser, times, index = smooth_denoiser(process), process.step_times(), torch.arange(2, 31)
    s, t = times[index - 1], times[index]
    x_t = expand_to(process.alpha(t), x_0) * x_0 + expand_to(process.sigma(t), x_0) * eps
    q = posterior(process, s, t)
    exact = Normal(q.mean(x_t, x_0), expand_to(q.variance.sqrt(), x_t))
    spread = expand_to(reverse_variance(process, s, t, variance).sqrt(), x_t)
    model = Normal(q.mean(x_t, denoiser.x0(x_t, t)), spread)
    expected = kl_divergence(exact, model).flatten(1).sum(1)
    actual = ReverseKernel(denoiser, clip_x0=False).diffusion_kl(x_0, index, eps)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
    first = ReverseKernel(denoiser).reconstruction_nll(x_0[:1], eps[:1])
    assert bool(torch.isfinite(first).all())


@pytest.mark.parametrize("clip", [True, False])
def test_a_learned_variance_is_scored_as_it_is(clip):
    """The interpolation of each element decides its Sigma_theta, in L_{t-1} and in L_0."""
    process = make_chain("cosine", 50, "learned")
    smooth = smooth_denoiser(process).network
    network = lambda x, time, label: torch.cat([smooth(x, time, label), torch.sin(5 * x)], 1)  # noqa: E731
    denoiser = Denoiser(network, process, "epsilon")
    generator = torch.Generator().manual_seed(0)
    x_0 = LEVELS[torch.randint(256, (49, 1, 2, 2), generator=generator)]
    eps = torch.randn(49, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.arange(2, 51)
    x_t = expand_to(process.alpha(t), x_0) * x_0 + expand_to(process.sigma(t), x_0) * eps
    estimate = denoiser.x0(x_t, t)
    estimate = estimate.clamp(-1, 1) if clip else estimate
    q = posterior(process, t - 1, t)
    variance = learned_reverse_variance(process, t - 1, t, torch.sin(5 * x_t))
    exact, model = (
        Normal(q.mean(x_t, x_0), expand_to(q.variance.sqrt(), x_t)),
        Normal(q.mean(x_t, estimate), variance.sqrt()),
    )
    expected = kl_divergence(exact, model).flatten(1).sum(1)
    kernel = ReverseKernel(denoiser, clip)
    torch.testing.assert_close(kernel.diffusion_kl(x_0, t, eps), expected, rtol=1e-7, atol=1e-12)
    one = torch.ones(49, dtype=torch.int64)
    x_1 = expand_to(process.alpha(one), x_0) * x_0 + expand_to(process.sigma(one), x_0) * eps
    mean = denoiser.x0(x_1, one)
    std = learned_reverse_variance(process, one - 1, one, torch.sin(5 * x_1)).sqrt()
    expected = -discretised_gaussian_log_prob(x_0, mean.clamp(-1, 1) if clip else mean, std).flatten(1).sum(1)
    torch.testing.assert_close(kernel.reconstruction_nll(x_0, eps), expected, rtol=1e-9, atol=1e-12)


def test_labels_reach_the_network():
    heard = []

    def network(x, time, label):
        heard.append(label.tolist())
        return x

    kernel = ReverseKernel(Denoiser(network, make_chain("cosine", 50), "epsilon"))
    x_0, label = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.tensor([3, 1])
    kernel.diffusion_kl(x_0, torch.tensor([2, 9]), x_0, label)
    kernel.reconstruction_nll(x_0, x_0, label)
    assert heard == [[3, 1], [3, 1]]


def test_bits_per_dim_of_one_fair_byte_is_eight():
    assert float(bits_per_dim(torch.tensor(64 * math.log(256), dtype=torch.float64), 64)) == pytest.approx(
        8, rel=1e-15, abs=0
    )
