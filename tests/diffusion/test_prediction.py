"""What outputs mean: conversions undo each other, the score is the true one, and EDM's coefficients are its paper's."""

import pytest
import torch

from diffusion.config import DdpmProcess, LinearSchedule, SubVpProcess, VeProcess, VpProcess
from diffusion.prediction import (
    Parameterization,
    Prediction,
    edm_norm,
    edm_target,
    epsilon_to_x0,
    velocity,
    x0_to_epsilon,
)
from diffusion.process.sde import make_process

SIGMA_DATA = 0.4
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "score", "x0", "v", "edm")
PROCESSES = {
    "linear": DdpmProcess(schedule=LinearSchedule()),
    "cosine": DdpmProcess(),
    "vp": VpProcess(),
    "sub_vp": SubVpProcess(),
    "ve": VeProcess(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)
every_prediction = pytest.mark.parametrize("kind", PREDICTIONS)


def output_of(kind: Prediction, x_0, eps, x_t, alpha, sigma) -> torch.Tensor:
    """What a network of each kind is trained to give, by its definition."""
    match kind:
        case "epsilon":
            return eps
        case "score":
            return -eps
        case "x0":
            return x_0
        case "v":
            return alpha * eps - sigma * x_0
        case "edm":
            s, y = sigma / alpha, x_t / alpha
            c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
            c_out = s * SIGMA_DATA / (s**2 + SIGMA_DATA**2) ** 0.5
            return (x_0 - c_skip * y) / c_out


def point(name: str, reach: float = 7.0):
    """x_0, eps, x_t, alpha and sigma over log-SNRs within [-reach, reach], float64."""
    process = make_process(PROCESSES[name])
    log_snr = torch.linspace(-reach, reach, 60, dtype=torch.float64)
    t = process.time(log_snr)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(60, dtype=torch.float64, generator=generator) for _ in range(2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    return x_0, eps, alpha * x_0 + sigma * eps, alpha, sigma


VALID = [
    (name, source, kind)
    for name in PROCESSES
    for source in PREDICTIONS
    for kind in PREDICTIONS
    if not ("v" in (source, kind) and name in ("sub_vp", "ve"))
]


@pytest.mark.parametrize(("name", "source", "kind"), VALID)
def test_every_conversion_comes_back(name, source, kind):
    """From the output of one kind to that of another and back, by way of x_0 and eps."""
    x_0, eps, x_t, alpha, sigma = point(name)
    first = output_of(source, x_0, eps, x_t, alpha, sigma)
    output = first
    for by, to in ((source, kind), (kind, source)):
        parameterization = Parameterization(by, SIGMA_DATA)
        estimate = parameterization.x0(output, x_t, alpha, sigma), parameterization.epsilon(output, x_t, alpha, sigma)
        torch.testing.assert_close(estimate[0], x_0, rtol=0, atol=1e-10)
        torch.testing.assert_close(estimate[1], eps, rtol=0, atol=1e-10)
        output = output_of(to, *estimate, x_t, alpha, sigma)
    torch.testing.assert_close(output, first, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, source, kind in VALID if source == "epsilon"])
def test_the_score_is_the_true_one_and_v_is_velocity(name, kind):
    """-eps / sigma is the gradient of log q(x_t | x_0), by automatic differentiation."""
    x_0, eps, x_t, alpha, sigma = point(name)
    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((-((x - alpha * x_0) ** 2) / (2 * sigma**2)).sum(), x)
    parameterization, output = Parameterization(kind, SIGMA_DATA), output_of(kind, x_0, eps, x_t, alpha, sigma)
    torch.testing.assert_close(parameterization.score(output, x_t, alpha, sigma), gradient, rtol=1e-8, atol=1e-9)
    expected = velocity(x_0, eps, alpha, sigma)
    torch.testing.assert_close(parameterization.v(output, x_t, alpha, sigma), expected, rtol=1e-9, atol=1e-9)


@every_process
def test_the_definitions_undo_each_other(name):
    x_0, eps, x_t, alpha, sigma = point(name)
    torch.testing.assert_close(epsilon_to_x0(eps, x_t, alpha, sigma), x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(x0_to_epsilon(x_0, x_t, alpha, sigma), eps, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        edm_target(x_0, x_t, alpha, sigma, SIGMA_DATA),
        output_of("edm", x_0, eps, x_t, alpha, sigma),
        rtol=1e-10,
        atol=1e-10,
    )


@every_process
def test_edms_input_output_and_target_have_unit_variance_on_data_of_sigma_data(name):
    """Karras et al. (2022), appendix B.6: Var(c_in y) = 1 and Var(F) = 1, in closed form over x_0 and eps."""
    _, _, _, alpha, sigma = point(name)
    parameterization = Parameterization("edm", SIGMA_DATA)
    of_x_0, of_eps = (parameterization.network_input(part, alpha, sigma) for part in (alpha * SIGMA_DATA, sigma))
    torch.testing.assert_close(of_x_0**2 + of_eps**2, torch.ones_like(alpha), rtol=1e-12, atol=0)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    of_x_0 = edm_target(SIGMA_DATA * one, alpha * SIGMA_DATA, alpha, sigma, SIGMA_DATA)
    of_eps = edm_target(zero, sigma, alpha, sigma, SIGMA_DATA)
    torch.testing.assert_close(of_x_0**2 + of_eps**2, one, rtol=1e-9, atol=0)


@every_process
def test_edms_skip_is_the_best_guess_of_a_network_that_says_nothing(name):
    """F = 0 gives E[x_0 | x_t] of Gaussian data of variance sigma_data^2."""
    _, _, x_t, alpha, sigma = point(name)
    actual = Parameterization("edm", SIGMA_DATA).x0(torch.zeros_like(x_t), x_t, alpha, sigma)
    expected = alpha * SIGMA_DATA**2 / (alpha**2 * SIGMA_DATA**2 + sigma**2) * x_t
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@every_prediction
def test_only_edm_sees_another_input(kind):
    x_t = torch.tensor([1.0, -2.0])
    actual = Parameterization(kind, 0.5).network_input(x_t, 0.6, 0.8)
    assert torch.equal(actual, x_t if kind != "edm" else x_t / (0.64 + 0.09) ** 0.5)


@every_prediction
def test_coefficients_may_be_numbers(kind):
    """Solvers hold them as such."""
    x_t, output = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
    parameterization = Parameterization(kind, SIGMA_DATA)
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.8))
    for function in (parameterization.x0, parameterization.epsilon, parameterization.score, parameterization.v):
        torch.testing.assert_close(
            function(output, x_t, 0.6, 0.8), function(output, x_t, alpha, sigma), rtol=1e-14, atol=0
        )
    assert float(edm_norm(alpha, sigma, SIGMA_DATA)) == pytest.approx(edm_norm(0.6, 0.8, SIGMA_DATA), rel=1e-15)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_x0_and_v_speak_of_the_data_where_the_snr_is_zero(kind):
    x_t, output = torch.tensor([0.3]), torch.tensor([0.25])
    actual = Parameterization(kind).x0(output, x_t, 0.0, 1.0)
    assert float(actual) == (0.25 if kind == "x0" else -0.25)
    assert float(Parameterization(kind).epsilon(output, x_t, 0.0, 1.0)) == pytest.approx(0.3)
