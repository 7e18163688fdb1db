"""The probability-flow log-likelihood: exact answers, SciPy's solution of the same ODE, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from diffusion import config as configs
from diffusion.config import CosineSchedule, DdpmProcess, LinearSchedule, SubVpProcess, VeProcess, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData, MixtureData, exact_denoiser
from diffusion.likelihood.ode import OdeDensity, dequantised_nll, divergence, log_density, standard_normal_log_prob
from diffusion.likelihood.quantization import dequantise, level_values
from diffusion.process.sde import Process, make_process
from diffusion.tensors import expand_to

PROCESSES = {
    "chain": DdpmProcess(num_train_timesteps=200, schedule=LinearSchedule()),
    "vp": VpProcess(log_snr_max=8.0),
    "sub_vp": SubVpProcess(log_snr_max=8.0),
    "ve": VeProcess(),
}


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def correlated(process: Process, covariance: Tensor) -> Denoiser:
    """The exact denoiser of N(0, covariance): eps = sigma (alpha^2 C + sigma^2 I)^-1 x."""

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
        total = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64)
        return sigma[:, :, 0] * torch.linalg.solve(total, x.double()[..., None])[..., 0]

    return exact_denoiser(process, epsilon)


def random_covariance(dimensions: int) -> Tensor:
    root = torch.randn(dimensions, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return root @ root.T / dimensions / 4 + 0.01 * torch.eye(dimensions, dtype=torch.float64)


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_on_a_gaussian_whatever_the_process(name):
    """log N(x; 0, V_{t_min}) from the true prior: two dimensions of unequal variance would show a wrong factor."""
    process, data = make_process(PROCESSES[name]), GaussianData(0.3, 0.2)
    x = torch.tensor([[0.1, -0.4], [0.9, 0.2], [-2.0, 3.0]], dtype=torch.float64)
    actual = log_density(data.denoiser(process), x, rtol=1e-6, atol=1e-7)

    def log_prob(t: float, at_x: Tensor) -> Tensor:
        mean, std = float(process.alpha(at(t))) * data.mean, float(data.variance_at(process, at(t)).sqrt())
        return torch.distributions.Normal(mean, std).log_prob(at_x).sum(1)

    exact = log_prob(process.t_min, x)
    torch.testing.assert_close(log_prob(process.t_max, actual.latent) + actual.change, exact, rtol=0, atol=2e-4)
    mismatch = log_prob(process.t_max, actual.latent) - standard_normal_log_prob(actual.latent, process.prior_std)
    torch.testing.assert_close(actual.log_prob, exact - mismatch, rtol=0, atol=2e-4)
    assert actual.log_prob.dtype == torch.float64
    assert bool((actual.evaluations > 10).all())


def reference(denoiser: Denoiser, x_0: Tensor, probe: Tensor | None) -> tuple[np.ndarray, float]:
    """SciPy's solution of the same ODE over log-SNR, with a Jacobian by torch.func; one row."""
    process = denoiser.process
    high, low = (float(process.log_snr(at(t))) for t in (process.t_min, process.t_max))

    def flow(log_snr: float, y: np.ndarray) -> np.ndarray:
        t = process.time(at(log_snr))
        variance = float(process.sigma(t)) ** 2
        x = torch.tensor(y[:-1])
        epsilon = denoiser.epsilon(x[None], t)[0].numpy()
        jacobian = torch.func.jacrev(lambda z: denoiser.epsilon(z[None], t)[0])(x).numpy()
        v = None if probe is None else probe.double().numpy()
        trace = np.trace(jacobian) if v is None else v @ jacobian @ v
        # dx / d log_snr = sigma^2 x / 2 - sigma eps / 2 where variance is preserved.
        slope = variance / 2 * y[:-1] - math.sqrt(variance) / 2 * epsilon
        return np.append(slope, variance / 2 * len(x) - math.sqrt(variance) / 2 * trace)

    start = np.append(x_0.double().numpy(), 0.0)
    solution = solve_ivp(flow, (high, low), start, method="DOP853", rtol=1e-8, atol=1e-9)
    assert solution.success
    return solution.y[:-1, -1], solution.y[-1, -1]


@pytest.mark.parametrize(
    ("kind", "probes"),
    [("mixture", "rademacher"), ("mixture", "exact"), ("correlated", "gaussian"), ("correlated", "exact")],
)
def test_agrees_with_scipy_on_the_same_ode(kind, probes):
    process = make_process(VpProcess(log_snr_max=5.0, log_snr_min=-7.0))
    dimensions = 2 if kind == "mixture" else 5
    if kind == "mixture":
        turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
        upright = MixtureData().denoiser(process)
        denoiser = Denoiser(lambda x, t, label: upright.network(x @ turn, t, label) @ turn.T, process, "epsilon")
    else:
        denoiser = correlated(process, random_covariance(dimensions))
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, dimensions, dtype=torch.float64, generator=generator) / 2
    normal = torch.randn(1, dimensions, dtype=torch.float64, generator=generator)
    probe = {"rademacher": normal.sign(), "gaussian": normal, "exact": None}[probes]
    actual = log_density(denoiser, x, probe, rtol=1e-7, atol=1e-8)
    latent, change = reference(denoiser, x[0], None if probe is None else probe[0])
    np.testing.assert_allclose(actual.latent[0].numpy(), latent, rtol=0, atol=2e-5)
    assert float(actual.change) == pytest.approx(change, abs=2e-5)


def test_the_mean_over_all_sign_probes_is_the_exact_density():
    """v^T J v over the eight sign vectors of three dimensions averages to the trace; one alone is off by much more."""
    process = make_process(VpProcess(log_snr_max=6.0))
    covariance = random_covariance(3)
    denoiser = correlated(process, covariance)
    x = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64).repeat(8, 1)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    each = log_density(denoiser, x, signs, rtol=1e-6, atol=1e-7)
    exact = log_density(denoiser, x[:1], rtol=1e-6, atol=1e-7)
    assert float(each.log_prob.mean()) == pytest.approx(float(exact.log_prob), abs=1e-4)
    assert float(each.log_prob.std()) > 0.1
    end = at(process.t_min)
    total = float(process.alpha(end)) ** 2 * covariance + float(process.sigma(end)) ** 2 * torch.eye(3)
    expected = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), total).log_prob(x[0])
    assert float(exact.log_prob) == pytest.approx(float(expected), abs=1e-3)  # N(0, I) is not quite p_T


def test_tolerance_decides_the_error_in_many_dimensions():
    """64 dimensions: x and the change of log density share one error norm, and the change is not lost in it."""
    process = make_process(VpProcess(log_snr_max=8.0))
    denoiser = MixtureData().denoiser(process)
    x = torch.linspace(-1.2, 1.2, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    probe = torch.where(torch.arange(64) % 3 == 0, 1.0, -1.0).double().reshape(x.shape)  # exact: J is diagonal
    truth = MixtureData().log_prob(process, at(process.t_min), x).sum()

    def error(rtol: float) -> float:
        actual = log_density(denoiser, x, probe, rtol=rtol, atol=rtol / 10)
        prior = MixtureData().log_prob(process, at(process.t_max), actual.latent).sum()
        return abs(float(prior + actual.change - truth))

    coarse, fine = error(1e-4), error(1e-6)
    assert fine < coarse / 10
    assert fine < 1e-3


class Small(nn.Module):
    """A network with parameters, labels and a float32 weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.outward, self.table = nn.Linear(4, 16), nn.Linear(16, 4), nn.Embedding(4, 16)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        assert x.dtype == torch.float32
        hidden = torch.tanh(self.inward(x.flatten(1)) + self.table(label) + expand_to(time / 1000, x.flatten(1)))
        return self.outward(hidden).reshape(x.shape)


def density(denoiser: Denoiser, x: Tensor, probe: Tensor, label: Tensor) -> OdeDensity:
    return log_density(denoiser, x, probe, label=label, rtol=1e-4, atol=1e-4)


def test_rows_are_independent_have_their_labels_and_may_come_from_inference_mode():
    process = make_process(VpProcess(log_snr_max=6.0, log_snr_min=-6.0))
    denoiser = Denoiser(Small(), process, "v", null_label=3)
    with torch.inference_mode():
        x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1)) / 2
        probe, label = torch.ones_like(x), torch.tensor([0, 1, 0])
        whole = density(denoiser, x, probe, label)
        alone = [density(denoiser, x[i : i + 1], probe[i : i + 1], label[i : i + 1]) for i in range(3)]
        unlabelled = log_density(denoiser, x, probe, rtol=1e-4, atol=1e-4)
        null = density(denoiser, x, probe, torch.full((3,), 3))
    torch.testing.assert_close(torch.cat([one.log_prob for one in alone]), whole.log_prob, rtol=0, atol=1e-4)
    assert whole.latent.shape == x.shape
    assert torch.equal(unlabelled.log_prob, null.log_prob)
    assert not torch.isclose(unlabelled.log_prob, whole.log_prob).any()
    assert all(parameter.grad is None for parameter in denoiser.network.parameters())  # type: ignore[attr-defined]


def test_divergence_of_a_known_map():
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    units = [unit.expand(2, 2) for unit in torch.eye(2, dtype=torch.float64)]
    value, total = divergence(lambda z: torch.stack([z[:, 0] ** 2 * z[:, 1], z[:, 1] ** 3], 1), x, units)
    torch.testing.assert_close(value, torch.tensor([[2.0, 8.0], [0.5, 0.125]], dtype=torch.float64))
    torch.testing.assert_close(total, 2 * x[:, 0] * x[:, 1] + 3 * x[:, 1] ** 2)
    assert not value.requires_grad


def test_images_are_scored_dequantised():
    process = make_process(VpProcess(log_snr_max=8.0))
    data = GaussianData(0.0, 0.25)
    levels = level_values(torch.zeros(1))[torch.tensor([[3, 100, 128, 250], [0, 9, 200, 31]])].reshape(2, 1, 2, 2)
    x = dequantise(levels, torch.rand(levels.shape, generator=torch.Generator().manual_seed(0)))
    nll, evaluations = dequantised_nll(data.denoiser(process), x, torch.ones_like(x))
    expected = log_density(data.denoiser(process), x, torch.ones_like(x))
    assert torch.equal(nll, -expected.log_prob)
    assert torch.equal(evaluations, expected.evaluations)
    std = float(data.variance_at(process, at(process.t_min)).sqrt())
    torch.testing.assert_close(-nll, torch.distributions.Normal(0, std).log_prob(x).sum((1, 2, 3)), rtol=0, atol=1e-2)
    for wrong, message in ((levels, "dequantise"), (x * 127.5 + 127.5, "allowed: "), (x / 2 + 0.5, "allowed: ")):
        with pytest.raises(ValueError, match=message):
            dequantised_nll(data.denoiser(process), wrong, torch.ones_like(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.full((1, 2), math.nan)}, "NaN or infinity"),
        ({"probe": torch.ones(1, 3)}, r"probe of shape \(1, 3\); allowed: that of the data, \(1, 2\)"),
        ({"rtol": 0.0}, "rtol = 0.0; allowed: above 0"),
    ],
)
def test_bad_input(change, message):
    denoiser = GaussianData(0.0, 1.0).denoiser(make_process(VpProcess()))
    with pytest.raises(ValueError, match=message):
        log_density(**{"denoiser": denoiser, "x_0": torch.zeros(1, 2), **change})


def test_a_terminal_snr_of_zero_is_refused_with_the_fix():
    process = make_process(DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True)))
    denoiser = Denoiser(lambda x, time, label: x, process, "v")
    with pytest.raises(
        ValueError, match=r"zero_terminal_snr = true: .* allowed: a schedule without it, or the discrete"
    ):
        log_density(denoiser, torch.zeros(1, 2))


def test_a_network_that_gives_nan_is_no_silent_nan():
    process = make_process(VpProcess())
    with pytest.raises(ArithmeticError, match="row 0 cannot go on"):
        log_density(Denoiser(lambda x, time, label: x * math.nan, process, "epsilon"), torch.zeros(1, 2))


def test_the_ode_solver_and_the_likelihood_go_the_same_way():
    """The latent of a sample is the noise that the sampling solver made it of."""
    from diffusion import solvers
    from diffusion.verify.claims.sampling import FixedNoise

    process = make_process(VpProcess(log_snr_max=6.0))
    denoiser = MixtureData().denoiser(process)
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1)
    config = configs.Rk45(rtol=1e-6, atol=1e-7, clip_x0=False, denoise=False)
    sample = solvers.solve(denoiser, FixedNoise(noise), config)
    actual = log_density(denoiser, sample, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(actual.latent, noise, rtol=0, atol=2e-4)
