"""The exact answers themselves: densities, scores and transports against independent formulas."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from diffusion.config import CosineSchedule, DdpmProcess, SubVpProcess, VeProcess, VpProcess
from diffusion.gaussian import GaussianData, MixtureData
from diffusion.process.sde import Chain, Process, make_process

PROCESSES = {
    config.kind: make_process(config)
    for config in (DdpmProcess(), VpProcess(schedule=CosineSchedule()), SubVpProcess(), VeProcess())
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
X = torch.linspace(-3, 3, 25, dtype=torch.float64).reshape(-1, 1)


def times_of(process: Process) -> list[torch.Tensor]:
    shares = (0.05, 0.4, 0.9)
    return [process.time_from_fraction(torch.tensor([share], dtype=torch.float64)) for share in shares]


@every_process
def test_a_gaussians_denoiser_gives_the_score_of_its_marginal(process):
    data = GaussianData(0.3, 0.2)
    for t in times_of(process):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        marginal = Normal(torch.tensor(0.3 * alpha).double(), torch.tensor((0.2 * alpha**2 + sigma**2) ** 0.5).double())
        x = X.clone().requires_grad_()
        (score,) = torch.autograd.grad(marginal.log_prob(x).sum(), x)
        actual = data.denoiser(process).score(X, t.expand(len(X)))
        torch.testing.assert_close(actual, score, rtol=1e-6, atol=1e-9)
        assert float(data.variance_at(process, t)) == pytest.approx(0.2 * alpha**2 + sigma**2, rel=1e-12)
        posterior = 1 / (1 / 0.2 + alpha**2 / sigma**2)
        assert float(data.x0_variance(process, t)) == pytest.approx(posterior, rel=1e-9)
    assert data.entropy == pytest.approx(float(Normal(0.3, 0.2**0.5).entropy()), rel=1e-6)


def marginal_of(data: MixtureData, process: Process, t: torch.Tensor) -> MixtureSameFamily:
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (data.weights, data.means, data.stds))
    alpha, sigma = process.alpha(t), process.sigma(t)
    return MixtureSameFamily(Categorical(weights), Normal(alpha * means, ((alpha * stds) ** 2 + sigma**2).sqrt()))


@every_process
def test_a_mixtures_density_distribution_and_score(process):
    data = MixtureData()
    for t in times_of(process):
        marginal = marginal_of(data, process, t)
        torch.testing.assert_close(data.log_prob(process, t, X), marginal.log_prob(X), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(data.cdf(process, t, X), marginal.cdf(X), rtol=1e-9, atol=1e-12)
        x = X.clone().requires_grad_()
        (score,) = torch.autograd.grad(data.log_prob(process, t, x).sum(), x)
        actual = data.denoiser(process).score(X, t.expand(len(X)))
        torch.testing.assert_close(actual, score, rtol=1e-9, atol=1e-9)


@every_process
def test_transport_keeps_every_points_quantile_and_comes_back(process):
    data = MixtureData()
    s, _, t = times_of(process)
    x = float(process.alpha(t)) * 0.1 + float(process.sigma(t)) * X / 3
    there = data.transport(process, x, t, s)
    torch.testing.assert_close(data.cdf(process, s, there), data.cdf(process, t, x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(data.transport(process, there, s, t), x, rtol=1e-7, atol=1e-7)


def test_on_gaussian_data_transport_is_affine_in_the_standardised_point():
    """One component: (x_s - m_s) / std_s = (x_t - m_t) / std_t."""
    data, process = MixtureData((1.0,), (0.4,), (0.5,)), PROCESSES["vp"]
    assert not isinstance(process, Chain)
    s, t = (torch.tensor([time], dtype=torch.float64) for time in (0.1, 0.8))

    def standard(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.alpha(time), process.sigma(time)
        return (x - 0.4 * alpha) / ((0.5 * alpha) ** 2 + sigma**2).sqrt()

    there = data.transport(process, X, t, s)
    torch.testing.assert_close(standard(there, s), standard(X, t), rtol=1e-6, atol=1e-6)
