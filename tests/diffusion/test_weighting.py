"""lambda(t): formulas, factors of the predictions, the bound's weights, and the learned log-variance."""

import math

import pytest
import torch

from diffusion.config import (
    AdaptiveWeighting,
    CosineSchedule,
    DdpmProcess,
    EdmWeighting,
    LikelihoodWeighting,
    LinearSchedule,
    MinSnrWeighting,
    P2Weighting,
    SigmoidWeighting,
    SimpleWeighting,
    SnrWeighting,
    SubVpProcess,
    VeProcess,
    VlbWeighting,
    VpProcess,
)
from diffusion.gaussian import GaussianData
from diffusion.likelihood.discrete import ReverseKernel
from diffusion.prediction import Parameterization, Prediction, edm_target, velocity
from diffusion.process.kernels import transition_variance
from diffusion.process.sde import Chain, make_process
from diffusion.weighting import LogVariance, weights, x0_error_ratio

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "score", "x0", "v", "edm")
WEIGHTINGS = [
    SimpleWeighting(), VlbWeighting(), LikelihoodWeighting(), SnrWeighting(), MinSnrWeighting(), P2Weighting(),
    EdmWeighting(), SigmoidWeighting(), AdaptiveWeighting(),
]  # fmt: skip
PROCESSES = {
    "linear": make_process(DdpmProcess(schedule=LinearSchedule())),
    "cosine": make_process(DdpmProcess()),
    "vp": make_process(VpProcess()),
    "vp-cosine": make_process(VpProcess(schedule=CosineSchedule())),
    "sub_vp": make_process(SubVpProcess()),
    "ve": make_process(VeProcess()),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
chains = pytest.mark.parametrize(
    "process", [PROCESSES[name] for name in ("linear", "cosine")], ids=["linear", "cosine"]
)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda weighting: weighting.kind)


def times(process) -> torch.Tensor:
    """All of its steps but data."""
    return process.step_times()[1:].long() if isinstance(process, Chain) else process.step_times()[1:]


@every_prediction
@every_weighting
@every_process
def test_weights_are_positive_and_finite(process, weighting, prediction):
    actual = weights(weighting, Parameterization(prediction), process, times(process))
    assert actual.dtype == torch.float64
    assert bool((actual > 0).all())
    assert bool(torch.isfinite(actual).all())


@every_process
def test_the_errors_of_all_predictions_are_one_error(process):
    """SNR ||x_0 - x_theta||^2 = ||eps - eps_theta||^2, ||v - v_theta||^2 = (SNR + 1) ||x_0 - x_theta||^2, ..."""
    t = times(process)
    t = t[process.log_snr(t).abs() < 9]
    generator = torch.Generator().manual_seed(0)
    x_0, guess = (torch.randn(len(t), dtype=torch.float64, generator=generator) for _ in range(2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x_t = alpha * x_0 + sigma * torch.randn(len(t), dtype=torch.float64, generator=generator)

    def outputs(estimate: torch.Tensor) -> dict[Prediction, torch.Tensor]:
        eps = (x_t - alpha * estimate) / sigma
        actual: dict[Prediction, torch.Tensor] = {
            "epsilon": eps,
            "score": -eps / sigma,
            "x0": estimate,
            "v": velocity(estimate, eps, alpha, sigma),
            "edm": edm_target(estimate, x_t, alpha, sigma, 0.3),
        }
        return actual

    truth, wrong = outputs(x_0), outputs(guess)
    x0_error = (x_0 - guess) ** 2
    for kind in PREDICTIONS:
        if kind == "v" and not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)):
            continue
        ratio = x0_error_ratio(Parameterization(kind, 0.3), process, t)
        torch.testing.assert_close((truth[kind] - wrong[kind]) ** 2, ratio * x0_error, rtol=1e-7, atol=0)


@every_process
def test_weightings_by_their_formulas(process):
    """On the error that each paper states it for; s is edm_sigma."""
    t = times(process)
    snr, s = torch.exp(process.log_snr(t)), process.sigma(t) / process.alpha(t)
    formulas = [
        (SnrWeighting(), "x0", snr),
        (SnrWeighting(), "epsilon", torch.ones_like(snr)),
        (MinSnrWeighting(gamma=3.0), "x0", snr.clamp(max=3)),
        (MinSnrWeighting(gamma=3.0), "epsilon", snr.clamp(max=3) / snr),
        (MinSnrWeighting(gamma=3.0), "v", snr.clamp(max=3) / (snr + 1)),
        (P2Weighting(k=2.0, gamma=0.5), "epsilon", 1 / torch.sqrt(2 + snr)),
        (EdmWeighting(), "x0", (s**2 + 0.09) / (0.3 * s) ** 2),
        (EdmWeighting(), "edm", torch.ones_like(s)),
        (SigmoidWeighting(bias=2.0), "epsilon", 1 / (1 + torch.exp(process.log_snr(t) - 2))),
    ]
    for weighting, kind, expected in formulas:
        actual = weights(weighting, Parameterization(kind, 0.3), process, t)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0, msg=f"{weighting} on {kind}")


@every_prediction
@every_process
@pytest.mark.parametrize("weighting", [SimpleWeighting(), AdaptiveWeighting()], ids=lambda weighting: weighting.kind)
def test_simple_is_one_on_the_networks_own_output(weighting, process, prediction):
    """For `score` on that of epsilon: sigma_t^2."""
    t = times(process)
    actual = weights(weighting, Parameterization(prediction), process, t)
    assert torch.equal(actual, process.sigma(t) ** 2 if prediction == "score" else torch.ones_like(actual))


@every_prediction
@every_process
def test_a_weighting_means_the_same_whatever_is_predicted(process, prediction):
    """lambda x (error of the prediction) is one number; simple and adaptive are excepted on purpose."""
    t = times(process)
    for weighting in WEIGHTINGS[1:-1]:
        on_x0 = weights(weighting, Parameterization("x0", 0.3), process, t)
        parameterization = Parameterization(prediction, 0.3)
        actual = weights(weighting, parameterization, process, t) * x0_error_ratio(parameterization, process, t)
        torch.testing.assert_close(actual, on_x0, rtol=1e-12, atol=0)


@chains
def test_the_bounds_weights_of_a_chain(process):
    """lambda = g^2 of equation (11), g^2 = T beta: half of it, on the score's own error; equation (12) of Ho et al."""
    t = times(process)
    beta = transition_variance(process, t - 1, t)
    likelihood = weights(LikelihoodWeighting(), Parameterization("score"), process, t)
    torch.testing.assert_close(likelihood, 1000 * beta / 2, rtol=1e-12, atol=0)
    vlb = weights(VlbWeighting(), Parameterization("epsilon"), process, t)
    torch.testing.assert_close(vlb, 1000 * beta / (2 * (1 - beta) * process.sigma(t) ** 2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["vp", "vp-cosine", "sub_vp", "ve"])
def test_the_bounds_weight_in_continuous_time_is_half_of_g_squared_on_the_score(name):
    process = PROCESSES[name]
    t = times(process)
    span = process.t_max - process.t_min
    for weighting in (VlbWeighting(), LikelihoodWeighting()):
        actual = weights(weighting, Parameterization("score"), process, t)
        torch.testing.assert_close(actual, span * process.squared_diffusion(t) / 2, rtol=1e-10, atol=0)
        on_x0 = weights(weighting, Parameterization("x0"), process, t)
        torch.testing.assert_close(
            on_x0, -span * torch.exp(process.log_snr(t)) * process.dlogsnr_dt(t) / 2, rtol=1e-12, atol=0
        )


@chains
def test_mean_over_t_of_the_vlb_weighted_error_is_the_bound_less_constants(process):
    """Gaussian data, exact denoiser: E||eps - eps_theta||^2 in closed form; t = 1 is the Gaussian decoder's error."""
    data, steps, t = GaussianData(0.0, 0.25), process.num_steps, times(process)
    epsilon_error = process.alpha(t) ** 2 / process.sigma(t) ** 2 * data.x0_variance(process, t)
    mean_loss = float((weights(VlbWeighting(), Parameterization("epsilon"), process, t) * epsilon_error).mean())
    ratio = (process.sigma(t - 1) ** 2 / process.sigma(t) ** 2)[1:]
    beta = transition_variance(process, t - 1, t)
    coef_x_0 = process.alpha(t - 1) * beta / process.sigma(t) ** 2
    terms = coef_x_0**2 * data.x0_variance(process, t) / (2 * beta)
    assert mean_loss == pytest.approx(float(terms.sum()), rel=1e-9, abs=0)
    kernel = ReverseKernel(data.denoiser(process), clip_x0=False)
    corners = [
        kernel.diffusion_kl(
            torch.full((steps - 1, 1), 0.5 * a, dtype=torch.float64),
            t[1:],
            torch.full((steps - 1, 1), b, dtype=torch.float64),
        )
        for a in (-1.0, 1.0)
        for b in (-1.0, 1.0)
    ]
    kl_sum = float((sum(corners) / 4 - 0.5 * (ratio - 1 - ratio.log())).sum())
    assert mean_loss == pytest.approx(kl_sum + float(terms[0]), rel=1e-8, abs=0)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@every_weighting
def test_weights_are_finite_where_the_snr_is_zero(weighting, prediction):
    process = make_process(DdpmProcess(schedule=LinearSchedule(zero_terminal_snr=True)))
    actual = weights(weighting, Parameterization(prediction), process, times(process))
    assert bool(torch.isfinite(actual).all())
    assert bool((actual[:-1] > 0).all())


def test_the_bounds_weight_where_the_snr_is_zero_is_that_of_its_kl():
    """coef_x_0^2 T / (2 beta_T) with beta_T = 1 and sigma_T = 1: T alpha_{T-1}^2 / 2 on x_0."""
    process = make_process(DdpmProcess(num_train_timesteps=50, schedule=CosineSchedule(zero_terminal_snr=True)))
    actual = weights(VlbWeighting(), Parameterization("x0"), process, torch.tensor([50]))
    assert float(actual) == pytest.approx(25 * float(process.alpha(torch.tensor(49)) ** 2), rel=1e-10, abs=0)


def log_variance(knots: int, process=None) -> LogVariance:
    module = LogVariance(AdaptiveWeighting(knots=knots), process or PROCESSES["vp"]).double()
    with torch.no_grad():
        module.values.copy_(torch.sin(torch.arange(knots, dtype=torch.float64)))
    return module


@pytest.mark.parametrize("knots", [2, 3, 32])
@every_process
def test_u_is_linear_between_even_knots_of_the_processs_range_and_constant_beyond(process, knots):
    module = log_variance(knots, process)
    low, high = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64)).tolist()
    at_knots = torch.linspace(low, high, knots, dtype=torch.float64)
    torch.testing.assert_close(module(at_knots), module.values, rtol=0, atol=1e-12)
    between = (at_knots[1:] * 3 + at_knots[:-1]) / 4
    expected = (module.values[1:] * 3 + module.values[:-1]) / 4
    torch.testing.assert_close(module(between), expected, rtol=0, atol=1e-12)
    beyond = torch.tensor([-math.inf, low - 5, high + 5, math.inf], dtype=torch.float64)
    assert torch.equal(module(beyond), module.values[[0, 0, -1, -1]])


def test_the_range_is_finite_where_the_snr_is_zero():
    process = make_process(DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True)))
    module = LogVariance(AdaptiveWeighting(), process)
    assert (module.low, math.isfinite(module.high)) == (-20, True)
    assert bool(torch.isfinite(module(process.log_snr(times(process)))).all())


def test_u_starts_at_zero_in_float32():
    module = LogVariance(AdaptiveWeighting(), PROCESSES["vp"])
    actual = module(torch.linspace(-9, 9, 5, dtype=torch.float64))
    assert (actual.dtype, actual.tolist()) == (torch.float32, [0] * 5)


def test_the_least_loss_is_at_the_logarithm_of_the_mean_error():
    """E exp(-u) + u with u = log E: no row has a gradient, and every other u costs more."""
    module = log_variance(9)
    log_snr = torch.linspace(module.low, module.high, 401, dtype=torch.float64)
    errors = module(log_snr).detach().exp()

    def cost() -> torch.Tensor:
        u = module(log_snr)
        return (errors * torch.exp(-u) + u).mean()

    least = cost()
    least.backward()
    assert module.values.grad is not None
    assert float(module.values.grad.abs().max()) < 1e-12
    for knot in range(9):
        for change in (-0.1, 0.1):
            with torch.no_grad():
                module.values[knot] += change
                assert float(cost()) > float(least)
                module.values[knot] -= change


def test_gradient_descent_on_noisy_errors_finds_the_mean_error():
    """Two errors equally often, 0.5 and 1.5 times exp(linear): u goes to the logarithm of their mean."""
    module = LogVariance(AdaptiveWeighting(knots=5), PROCESSES["vp"]).double()
    log_snr = torch.linspace(module.low, module.high, 201, dtype=torch.float64).repeat(2)
    mean = torch.exp(0.2 * log_snr - 1)
    errors = mean * torch.tensor([0.5, 1.5], dtype=torch.float64).repeat_interleave(201)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=200, tolerance_grad=1e-10)

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        u = module(log_snr)
        loss = (errors * torch.exp(-u) + u).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(cost)
    torch.testing.assert_close(module(log_snr).detach(), mean.log(), rtol=0, atol=1e-5)
