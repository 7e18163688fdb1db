"""The continuous bound: exact on Gaussians, a true bound on 8-bit data, its decoder, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    LearnedSchedule,
    LinearSchedule,
    SubVpProcess,
    VeProcess,
    VpProcess,
)
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData
from diffusion.likelihood.continuous import diffusion_rate, estimate_continuous_vlb, log_snr_ends, reconstruction_nll
from diffusion.likelihood.decoder import channel_log_prob
from diffusion.likelihood.discrete import prior_kl
from diffusion.likelihood.proposal import TimeProposal
from diffusion.likelihood.quantization import level_values
from diffusion.process.sde import Process, make_process
from diffusion.tensors import expand_to

LEVELS = level_values(torch.zeros(1))
PROCESSES = {
    "chain": DdpmProcess(schedule=LinearSchedule()),
    "vp": VpProcess(),
    "sub_vp": SubVpProcess(),
    "ve": VeProcess(),
    "learned": VpProcess(schedule=LearnedSchedule()),  # its network is told how far log-SNR has fallen
}


def even(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def told_log_snr(data: GaussianData, fixed: Process, learned: Process) -> Denoiser:
    """The exact denoiser of a variance-preserving process whose time says log-SNR alone."""

    def network(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        alpha, sigma = (c(13.3 - 26.6 * time / 1000) for c in (fixed.alpha_at, fixed.sigma_at))
        return expand_to(sigma / (alpha**2 * data.variance + sigma**2), x) * x

    return Denoiser(network, learned, "epsilon")


@pytest.mark.parametrize("name", PROCESSES)
@torch.no_grad()
def test_with_the_exact_denoiser_the_bound_is_tight_on_gaussian_data(name):
    """Prior + diffusion + h(x_0 | x_{t_min}) = h(x_0) + KL(q(x_1) || p), mean over Gaussian data, one dimension.

    A continuous x_0 has no levels, so its reconstruction term is its differential entropy given x_{t_min}.
    """
    process, data = make_process(PROCESSES[name]), GaussianData(0.0, 0.25)
    denoiser = data.denoiser(process) if name != "learned" else told_log_snr(data, make_process(VpProcess()), process)
    t, weights = TimeProposal.uniform(process).draw(even(4000))
    x_0 = torch.full((4000, 1), 0.5, dtype=torch.float64)
    corners = [diffusion_rate(denoiser, x_0, t, torch.full_like(x_0, sign)) for sign in (-1, 1)]
    diffusion = float((weights * (corners[0] + corners[1]) / 2).mean())
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    left = 0.5 * math.log(2 * math.pi * math.e * float(data.x0_variance(process, ends[:1])))
    ratio = float(data.variance_at(process, ends[1:])) / process.prior_std**2
    mismatch = (ratio - 1 - math.log(ratio)) / 2
    total = float(prior_kl(process, x_0[:1])) + diffusion + left
    assert total == pytest.approx(data.entropy + mismatch, abs=2e-5)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.99999, 1e-3), (0.9, 0.4), (0.01, 1.0), (1.0, 50.0)])
def test_the_channel_decoder_is_a_distribution(alpha, sigma):
    z = torch.tensor([-3.0, -0.2, 0.001, 0.9999, 40.0], dtype=torch.float64)
    log_p = channel_log_prob(LEVELS.repeat(5, 1), z[:, None].expand(5, 256), alpha, sigma)
    assert bool((log_p <= 0).all())
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_channel_decoder_is_bayes_rule():
    z, alpha, sigma = torch.tensor([[0.31]], dtype=torch.float64), 0.97, 0.02
    q = Normal(alpha * LEVELS, sigma).log_prob(z[0]).exp()
    actual = torch.stack([channel_log_prob(level.reshape(1, 1), z, alpha, sigma)[0, 0] for level in LEVELS])
    torch.testing.assert_close(actual.exp(), q / q.sum(), rtol=1e-10, atol=1e-15)


def test_reconstruction_takes_the_process_at_t_min():
    process = make_process(VpProcess(log_snr_max=9.0))
    x_0, eps = LEVELS[torch.tensor([[3, 77], [128, 255]])], torch.tensor([[0.3, -2.0], [1.0, 0.1]])
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-9.0))), math.sqrt(1 / (1 + math.exp(9.0)))
    expected = -channel_log_prob(x_0, alpha * x_0 + sigma * eps, alpha, sigma).sum(1)
    torch.testing.assert_close(reconstruction_nll(process, x_0, eps), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wrong", [1.0, 1.1])
def test_the_bound_never_claims_more_than_unit_mass(wrong):
    """exp(-bound(x)) <= P(x), so over all 256 values of one pixel it sums to at most 1; a missing term breaks it."""
    process = make_process(VpProcess(log_snr_max=11.0, log_snr_min=-9.0))
    exact = GaussianData(0.1, 0.08).denoiser(process)
    denoiser = Denoiser(lambda x, time, label: wrong * exact.network(x, time, label), process, "epsilon")
    x_0 = LEVELS.reshape(-1, 1)
    draws = 200
    t, weights = TimeProposal.uniform(process).draw(even(draws).expand(256, draws))
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(41)
    bound = torch.zeros(256, dtype=torch.float64)
    for node, weight in zip(nodes, node_weights / node_weights.sum(), strict=True):
        eps = torch.full((256, draws + 1, 1), float(node), dtype=torch.float64)
        bound += weight * estimate_continuous_vlb(denoiser, x_0, t, eps, weights).total
    mass = float(torch.exp(-bound).sum())
    assert (0.85 if wrong == 1 else 0.2) < mass <= 1.0


def labelled(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    assert label is not None
    return torch.sin(x * expand_to(label + 1, x)) * expand_to(1 / (1 + time), x)


def test_each_row_is_the_same_alone_and_has_its_own_label():
    process = make_process(VpProcess())
    denoiser = Denoiser(labelled, process, "epsilon", null_label=3)
    generator = torch.Generator().manual_seed(0)
    x_0 = LEVELS[torch.randint(256, (4, 1, 2, 3), generator=generator)].float()
    eps = torch.randn(4, 6, 1, 2, 3, generator=generator)
    t, weights = TimeProposal.uniform(process).draw(torch.rand(4, 5, generator=generator, dtype=torch.float64))
    label = torch.tensor([0, 1, 2, 0])
    whole = estimate_continuous_vlb(denoiser, x_0, t, eps, weights, label)
    assert whole.total.dtype == torch.float64
    for i in range(4):
        row = slice(i, i + 1)
        alone = estimate_continuous_vlb(denoiser, x_0[row], t[row], eps[row], weights[row], label[row])
        for name in ("prior", "diffusion", "reconstruction"):
            torch.testing.assert_close(getattr(alone, name), getattr(whole, name)[row], rtol=1e-12, atol=0)
    unlabelled = estimate_continuous_vlb(denoiser, x_0, t, eps, weights)
    null = estimate_continuous_vlb(denoiser, x_0, t, eps, weights, torch.full((4,), 3))
    assert torch.equal(unlabelled.diffusion, null.diffusion)
    assert not torch.isclose(unlabelled.diffusion, whole.diffusion).any()


def test_what_it_refuses():
    process = make_process(DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True)))
    t = torch.full((1, 1), 5.0, dtype=torch.float64)
    eps, x_0 = torch.ones(1, 2, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"zero_terminal_snr = true: .*allowed: a schedule without it, or the discrete"
    ):
        estimate_continuous_vlb(Denoiser(lambda x, time, label: x, process, "v"), x_0, t, eps, t)
    vp = make_process(VpProcess())
    with pytest.raises(ValueError, match="between two of the 256 levels"):
        estimate_continuous_vlb(GaussianData(0, 1).denoiser(vp), 0.3 * x_0, t / 10, eps, t)
    broken = Denoiser(lambda x, time, label: x * math.nan, vp, "epsilon")
    with pytest.raises(ArithmeticError, match=r"diffusion term is not finite for rows \[0\]: the network gives NaN"):
        estimate_continuous_vlb(broken, x_0, t / 10, eps, t)


def test_the_ends_of_a_chain_are_its_first_and_last_step():
    process = make_process(DdpmProcess(schedule=LinearSchedule()))
    first, last = math.log(0.9999 / 0.0001), -10.1177
    assert log_snr_ends(process) == pytest.approx((first, last), abs=1e-4)
