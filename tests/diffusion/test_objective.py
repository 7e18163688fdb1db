"""The two training objectives are one number by two paths, and their weights are the bound's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.config import (
    CosineSchedule,
    LikelihoodWeighting,
    LinearSchedule,
    MinSnrWeighting,
    ObjectiveConfig,
    P2Weighting,
    ProcessConfig,
    SimpleWeighting,
    SnrWeighting,
    VlbWeighting,
)
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData
from diffusion.likelihood import ReverseKernel
from diffusion.objective import Objective, RowLosses, total_loss
from diffusion.prediction import (
    Prediction,
    epsilon_to_x0,
    output_to_epsilon,
    output_to_score,
    output_to_x0,
    velocity,
    x0_to_epsilon,
)
from diffusion.schedule import Schedule, rows
from diffusion.weighting import epsilon_error_ratio, epsilon_weights, weights

WEIGHTINGS = {
    weighting.kind: weighting
    for weighting in (
        SimpleWeighting(), VlbWeighting(), LikelihoodWeighting(), SnrWeighting(), MinSnrWeighting(), P2Weighting(),
    )
}  # fmt: skip
SCHEDULES = {"linear": LinearSchedule(), "cosine": CosineSchedule()}
every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "score", "x0", "v"])
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
every_schedule = pytest.mark.parametrize(
    "schedule", [Schedule.from_config(ProcessConfig(schedule=s)) for s in SCHEDULES.values()], ids=SCHEDULES
)


def raw(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cos(3 * x + rows(t / 300, x))


def objective(prediction: Prediction, weighting, schedule: Schedule, network=raw) -> Objective:
    return Objective(
        ObjectiveConfig(prediction=prediction, weighting=weighting), Denoiser(network, schedule, prediction)
    )


def batch(rows_: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    t = torch.cat([torch.tensor([1, 2, 1000]), torch.randint(1, 1001, (rows_ - 3,), generator=generator)])
    x_0 = torch.rand(rows_, 1, 4, 4, generator=generator, dtype=dtype) * 2 - 1
    return x_0, t, torch.randn(rows_, 1, 4, 4, generator=generator, dtype=dtype)


@every_weighting
@every_schedule
def test_denoising_and_score_matching_are_equal_row_by_row(schedule, weighting):
    """Equations (8) and (11): one function read as eps_theta and, negated, as sigma_t s_theta."""
    x_0, t, eps = batch(200)
    denoising = objective("epsilon", weighting, schedule)(x_0, t, eps)
    matching = objective("score", weighting, schedule, lambda x, t: -raw(x, t))(x_0, t, eps)
    torch.testing.assert_close(matching.weighted, denoising.weighted, rtol=1e-6, atol=0)
    torch.testing.assert_close(matching.epsilon_mse, denoising.epsilon_mse, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
def test_both_paths_have_the_same_gradient(prediction):
    schedule = Schedule.from_config(ProcessConfig())
    scale = torch.tensor(0.7, requires_grad=True)
    sign = 1 if prediction == "epsilon" else -1
    x_0, t, eps = batch(50)
    objective(prediction, SimpleWeighting(), schedule, lambda x, t: sign * scale * raw(x, t))(
        x_0, t, eps
    ).weighted.mean().backward()
    x_t = rows(schedule.alpha[t], x_0) * x_0 + rows(schedule.sigma[t], x_0) * eps
    expected = (2 * (0.7 * raw(x_t, t) - eps) * raw(x_t, t)).mean()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-4, abs=0)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
def test_the_reported_error_is_unweighted_and_carries_no_gradient(prediction):
    schedule = Schedule.from_config(ProcessConfig())
    scale = torch.tensor(0.7, requires_grad=True)
    losses = objective(prediction, VlbWeighting(), schedule, lambda x, t: scale * raw(x, t))(*batch(20))
    assert not losses.epsilon_mse.requires_grad
    assert losses.weighted.requires_grad


@every_schedule
def test_simple_loss_of_a_zero_network_is_the_mean_square_of_the_noise(schedule):
    x_0, t, eps = batch(30)
    losses = objective("epsilon", SimpleWeighting(), schedule, lambda x, t: torch.zeros_like(x))(x_0, t, eps)
    torch.testing.assert_close(losses.weighted, eps.square().mean((1, 2, 3)), rtol=1e-6, atol=0)


@every_schedule
def test_vlb_weighted_error_is_the_part_of_the_kl_that_depends_on_theta(schedule):
    """With Sigma = beta_t: KL_t = weight_t / T ||eps - eps_theta||^2 + a constant of t, whatever the network."""
    weights = epsilon_weights(VlbWeighting(), schedule)
    x_0, t, eps = batch(300, torch.float64)
    x_0, t, eps = x_0[t > 1], t[t > 1], eps[t > 1]
    x_t = rows(schedule.alpha[t], x_0) * x_0 + rows(schedule.sigma[t], x_0) * eps
    squared = (eps - raw(x_t, t)).square().flatten(1).sum(1)
    ratio = schedule.sigma[t - 1] ** 2 / schedule.sigma[t] ** 2
    constant = 0.5 * 16 * (ratio - 1 - ratio.log())
    kl = ReverseKernel(Denoiser(raw, schedule, "epsilon"), "beta", clip_x0=False).diffusion_kl(x_0, t, eps)
    torch.testing.assert_close(weights[t] / schedule.num_steps * squared, kl - constant, rtol=1e-7, atol=1e-9)


@every_schedule
def test_mean_over_t_of_the_vlb_weighted_error_is_the_bound_less_constants(schedule):
    """Gaussian data, exact denoiser: E||eps - eps_theta||^2 in closed form; t = 1 is the Gaussian decoder's error."""
    data, steps = GaussianData(0.0, 0.25), schedule.num_steps
    t = torch.arange(1, steps + 1)
    epsilon_error = schedule.alpha[t] ** 2 / schedule.sigma[t] ** 2 * data.x0_variance(schedule, t)
    mean_loss = float((epsilon_weights(VlbWeighting(), schedule)[1:] * epsilon_error).mean())
    ratio = (schedule.sigma[t - 1] ** 2 / schedule.sigma[t] ** 2)[1:]
    beta = schedule.transition_variance(t - 1, t)
    coef_x_0 = schedule.alpha[t - 1] * beta / schedule.sigma[t] ** 2
    terms = coef_x_0**2 * data.x0_variance(schedule, t) / (2 * beta)
    assert mean_loss == pytest.approx(float(terms.sum()), rel=1e-9, abs=0)
    kernel = ReverseKernel(data.denoiser(schedule), "beta", clip_x0=False)
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


@every_prediction
@every_weighting
def test_weights_are_positive_and_index_zero_is_unused(weighting, prediction):
    table = weights(weighting, Schedule.from_config(ProcessConfig()), prediction)
    assert float(table[0]) == 0
    assert bool((table[1:] > 0).all())
    assert bool(torch.isfinite(table).all())


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**31))
@settings(deadline=None)
def test_averaging_over_ranks_gives_the_global_mean_whatever_the_padding(size, world, seed):
    losses = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    per_rank = math.ceil(size / world)
    padded = torch.cat([losses, torch.full((per_rank * world - size,), 1e3, dtype=torch.float64)])
    real = (torch.arange(len(padded)) < size).to(torch.float64)
    shares = [
        total_loss(RowLosses(padded[part], padded[part]), real[part], size, world)
        for part in (slice(r * per_rank, (r + 1) * per_rank) for r in range(world))
    ]
    assert float(sum(shares)) / world == pytest.approx(float(losses.mean()), rel=1e-12, abs=0)


@every_schedule
def test_conversions_undo_each_other_and_the_score_is_the_true_one(schedule):
    """-eps / sigma is the gradient of log q(x_t | x_0), by automatic differentiation."""
    x_0, t, eps = batch(60, torch.float64)
    alpha, sigma = rows(schedule.alpha[t], x_0), rows(schedule.sigma[t], x_0)
    x_t = (alpha * x_0 + sigma * eps).requires_grad_()
    log_q = (-((x_t - alpha * x_0) ** 2) / (2 * sigma**2)).sum()
    (gradient,) = torch.autograd.grad(log_q, x_t)
    point = (x_t.detach(), alpha, sigma)
    for kind, output in outputs(eps, x_t.detach(), t, schedule).items():
        torch.testing.assert_close(output_to_score(kind, output, *point), gradient, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(output_to_epsilon(kind, output, *point), eps, rtol=0, atol=1e-9)
        torch.testing.assert_close(output_to_x0(kind, output, *point), x_0, rtol=0, atol=1e-9)
    recovered = epsilon_to_x0(eps, x_t.detach(), alpha, sigma)
    torch.testing.assert_close(recovered, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(x0_to_epsilon(recovered, x_t.detach(), alpha, sigma), eps, rtol=0, atol=1e-9)


@every_prediction
def test_a_denoiser_is_one_object_seen_four_ways(prediction):
    schedule = Schedule.from_config(ProcessConfig())
    denoiser = Denoiser(raw, schedule, prediction)
    x, t, _ = batch(40, torch.float64)
    alpha, sigma = rows(schedule.alpha[t], x), rows(schedule.sigma[t], x)
    torch.testing.assert_close(denoiser.score(x, t), -denoiser.epsilon(x, t) / sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha * denoiser.x0(x, t) + sigma * denoiser.epsilon(x, t), x, rtol=1e-10, atol=1e-12)
    v = alpha * denoiser.epsilon(x, t) - sigma * denoiser.x0(x, t)
    torch.testing.assert_close(denoiser.v(x, t), v, rtol=1e-10, atol=1e-12)
    own = {"epsilon": denoiser.epsilon, "x0": denoiser.x0, "v": denoiser.v}.get(prediction)
    assert torch.equal(own(x, t) if own else -denoiser.epsilon(x, t), raw(x, t))


def outputs(
    epsilon: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, schedule: Schedule
) -> dict[Prediction, torch.Tensor]:
    """What a network of each kind would give for this eps_theta."""
    alpha, sigma = rows(schedule.alpha[t], x_t), rows(schedule.sigma[t], x_t)
    x_0 = epsilon_to_x0(epsilon, x_t, alpha, sigma)
    return {"epsilon": epsilon, "score": -epsilon, "x0": x_0, "v": velocity(x_0, epsilon, alpha, sigma)}


@every_prediction
@every_weighting
@every_schedule
def test_a_weighting_gives_one_loss_whatever_the_network_predicts(schedule, weighting, prediction):
    x_0, t, eps = batch(200, torch.float64)
    network = lambda x, t: outputs(raw(x, t), x, t, schedule)[prediction]  # noqa: E731
    expected = objective("epsilon", weighting, schedule)(x_0, t, eps)
    losses = objective(prediction, weighting, schedule, network)(x_0, t, eps)
    torch.testing.assert_close(losses.epsilon_mse, expected.epsilon_mse, rtol=2e-5, atol=1e-9)
    if isinstance(weighting, SimpleWeighting) and prediction in ("x0", "v"):
        ratio = epsilon_error_ratio(prediction, schedule)[t].to(losses.weighted)
        torch.testing.assert_close(losses.weighted * ratio, losses.epsilon_mse, rtol=1e-6, atol=0)
    else:
        torch.testing.assert_close(losses.weighted, expected.weighted, rtol=2e-5, atol=1e-9)


@every_schedule
def test_the_errors_of_all_predictions_are_one_error(schedule):
    """SNR ||x_0 - x_theta||^2 = ||eps - eps_theta||^2 and ||v - v_theta||^2 = (SNR + 1) ||x_0 - x_theta||^2."""
    t = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    x_0, eps, guess = (torch.randn(1000, 1, dtype=torch.float64, generator=generator) for _ in range(3))
    alpha, sigma = schedule.alpha[t][:, None], schedule.sigma[t][:, None]
    truth: dict[Prediction, torch.Tensor] = {
        "epsilon": eps,
        "score": -eps / sigma,
        "x0": x_0,
        "v": velocity(x_0, eps, alpha, sigma),
    }
    estimate = outputs(guess, alpha * x_0 + sigma * eps, t, schedule)
    estimate["score"] = estimate["score"] / sigma
    error = {kind: (truth[kind] - estimate[kind])[:, 0] ** 2 for kind in truth}
    for kind in truth:
        ratio = epsilon_error_ratio(kind, schedule)[t]
        torch.testing.assert_close(ratio * error[kind], error["epsilon"], rtol=1e-9, atol=0)
    snr = torch.exp(schedule.log_snr[t])
    # rounding is that of x_0, whose error is divided by alpha_t
    torch.testing.assert_close(error["v"], (snr + 1) * error["x0"], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x0", lambda snr, gamma: torch.clamp(snr, max=gamma)),
        ("epsilon", lambda snr, gamma: torch.clamp(snr, max=gamma) / snr),
        ("v", lambda snr, gamma: torch.clamp(snr, max=gamma) / (snr + 1)),
    ],
)
@every_schedule
def test_min_snr_has_its_own_factor_for_each_prediction(schedule, prediction, expected):
    snr = torch.exp(schedule.log_snr[1:])
    table = weights(MinSnrWeighting(gamma=5.0), schedule, prediction)
    torch.testing.assert_close(table[1:], expected(snr, 5.0), rtol=1e-12, atol=0)


@every_schedule
def test_weightings_by_their_formulas(schedule):
    snr = torch.exp(schedule.log_snr[1:])
    beta = schedule.transition_variance(torch.arange(1000), torch.arange(1, 1001))
    torch.testing.assert_close(weights(SnrWeighting(), schedule, "x0")[1:], snr, rtol=1e-12, atol=0)
    p2 = weights(P2Weighting(k=2.0, gamma=0.5), schedule, "epsilon")[1:]
    torch.testing.assert_close(p2, 1 / torch.sqrt(2 + snr), rtol=1e-12, atol=0)
    # lambda = g^2 of equation (11), g^2 = T beta: half of it, on the score's own error
    likelihood = weights(LikelihoodWeighting(), schedule, "score")[1:]
    torch.testing.assert_close(likelihood, 1000 * beta / 2, rtol=1e-12, atol=0)
    vlb = weights(VlbWeighting(), schedule, "score")[1:]
    torch.testing.assert_close(vlb * (1 - beta), likelihood, rtol=1e-12, atol=0)
