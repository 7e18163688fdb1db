"""The training objectives are one number by several paths; a learned reverse variance is trained by the bound alone."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    AdaptiveWeighting,
    DdpmProcess,
    EdmWeighting,
    LearnedSchedule,
    LikelihoodWeighting,
    LinearSchedule,
    MinSnrWeighting,
    ObjectiveConfig,
    P2Weighting,
    SigmoidWeighting,
    SimpleWeighting,
    SnrWeighting,
    SubVpProcess,
    VeProcess,
    VlbWeighting,
    VpProcess,
)
from diffusion.denoiser import Denoiser
from diffusion.likelihood.discrete import ReverseKernel, reverse_kernel_loss
from diffusion.objective import VARIANCE_LOSS_WEIGHT, Objective, total_loss
from diffusion.prediction import Prediction, edm_target, epsilon_to_x0, velocity
from diffusion.process.sde import Chain, Process, make_process
from diffusion.tensors import expand_to
from diffusion.weighting import weights, x0_error_ratio

WEIGHTINGS = [
    SimpleWeighting(), VlbWeighting(), LikelihoodWeighting(), SnrWeighting(), MinSnrWeighting(), P2Weighting(),
    EdmWeighting(), SigmoidWeighting(),
]  # fmt: skip
PROCESSES = {
    "linear": make_process(DdpmProcess(schedule=LinearSchedule())),
    "cosine": make_process(DdpmProcess()),
    "vp": make_process(VpProcess()),
    "sub_vp": make_process(SubVpProcess()),
    "ve": make_process(VeProcess()),
}
every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "score", "x0", "v", "edm"])
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda weighting: weighting.kind)
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
chains = pytest.mark.parametrize(
    "process", [PROCESSES[name] for name in ("linear", "cosine")], ids=["linear", "cosine"]
)


def raw(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cos(3 * x + expand_to(time / 300, x))


def zero(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    return torch.zeros_like(x)


def objective(prediction: Prediction, weighting, process: Process, network=raw) -> Objective:
    config = ObjectiveConfig(prediction=prediction, weighting=weighting)
    return Objective(config, Denoiser(network, process, prediction))


def batch(process: Process, size: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_0, t and eps; t has both ends of the process."""
    generator = torch.Generator().manual_seed(3)
    ends = torch.tensor([0.0, 0.0011, 1 - 1e-9], dtype=torch.float64)
    share = torch.cat([ends, torch.rand(size - 3, generator=generator, dtype=torch.float64)])
    t = process.time_from_fraction(share)
    x_0 = torch.rand(size, 1, 4, 4, generator=generator, dtype=dtype) * 2 - 1
    eps = torch.randn(size, 1, 4, 4, generator=generator, dtype=dtype)
    return x_0, t.long() if isinstance(process, Chain) else t, eps


def gradient(of: torch.Tensor) -> torch.Tensor:
    assert of.grad is not None
    return of.grad


def noisy(process: Process, x_0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return expand_to(process.alpha(t), x_0) * x_0 + expand_to(process.sigma(t), x_0) * eps


@every_weighting
@every_process
def test_denoising_and_score_matching_are_equal_row_by_row(process, weighting):
    """Equations (8) and (11): one function read as eps_theta and, negated, as sigma_t s_theta."""
    rows_of = batch(process, 200)
    loss, mse = objective("epsilon", weighting, process)(*rows_of)
    score_loss, score_mse = objective("score", weighting, process, lambda x, t, y: -raw(x, t))(*rows_of)
    torch.testing.assert_close(score_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(score_mse, mse, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@every_process
def test_both_paths_have_the_same_gradient(process, prediction):
    scale = torch.tensor(0.7, requires_grad=True)
    sign = 1 if prediction == "epsilon" else -1
    x_0, t, eps = batch(process, 50)
    loss, _ = objective(prediction, SimpleWeighting(), process, lambda x, t, y: sign * scale * raw(x, t))(x_0, t, eps)
    loss.mean().backward()
    x_t = noisy(process, x_0, t, eps)
    output = raw(x_t, process.network_time(t).float())
    expected = (2 * (0.7 * output - eps) * output).mean()
    assert float(gradient(scale)) == pytest.approx(float(expected), rel=1e-4, abs=0)


@every_prediction
def test_the_reported_error_is_unweighted_and_carries_no_gradient(prediction):
    process = PROCESSES["linear"]
    scale = torch.tensor(0.7, requires_grad=True)
    weighted, mse = objective(prediction, VlbWeighting(), process, lambda x, t, y: scale * raw(x, t))(
        *batch(process, 20)
    )
    assert not mse.requires_grad
    assert weighted.requires_grad
    assert (weighted.shape, mse.shape, weighted.dtype, mse.dtype) == ((20,), (20,), torch.float32, torch.float32)


@every_process
def test_simple_loss_of_a_zero_network_is_the_mean_square_of_the_noise(process):
    x_0, t, eps = batch(process, 30)
    loss, mse = objective("epsilon", SimpleWeighting(), process, zero)(x_0, t, eps)
    torch.testing.assert_close(loss, eps.square().mean((1, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(mse, loss, rtol=1e-6, atol=0)


@chains
def test_vlb_weighted_error_is_the_part_of_the_kl_that_depends_on_theta(process):
    """With Sigma = beta_t: KL_t = weight_t / T ||eps - eps_theta||^2 + a constant of t, whatever the network."""
    x_0, t, eps = batch(process, 300, torch.float64)
    x_0, t, eps = x_0[t > 1], t[t > 1], eps[t > 1]
    loss, _ = objective("epsilon", VlbWeighting(), process)(x_0, t, eps)
    ratio = process.sigma(t - 1) ** 2 / process.sigma(t) ** 2
    constant = 0.5 * 16 * (ratio - 1 - ratio.log())
    kl = ReverseKernel(Denoiser(raw, process, "epsilon"), clip_x0=False).diffusion_kl(x_0, t, eps)
    expected = (kl - constant) / 16 * process.num_steps
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def outputs(epsilon: torch.Tensor, x_t: torch.Tensor, alpha, sigma, sigma_data: float) -> dict[str, torch.Tensor]:
    """What a network of each kind would give for this eps_theta."""
    x_0 = epsilon_to_x0(epsilon, x_t, alpha, sigma)
    return {
        "epsilon": epsilon,
        "score": -epsilon,
        "x0": x_0,
        "v": velocity(x_0, epsilon, alpha, sigma),
        "edm": edm_target(x_0, x_t, alpha, sigma, sigma_data),
    }


class SameFunction:
    """One eps_theta behind networks of every kind; an edm network is shown c_in y, so x_t is handed to it."""

    def __init__(self, kind: Prediction, process: Process, x_0, t, eps) -> None:
        self.x_t = noisy(process, x_0, t, eps)
        coefficients = expand_to(process.alpha(t), x_0), expand_to(process.sigma(t), x_0)
        self.output = outputs(raw(self.x_t, process.network_time(t).double()), self.x_t, *coefficients, 0.5)[kind]

    def __call__(self, x, time, label):
        return self.output


@every_prediction
@every_weighting
@every_process
def test_a_weighting_gives_one_loss_whatever_the_network_predicts(process, weighting, prediction):
    if prediction == "v" and process in (PROCESSES["sub_vp"], PROCESSES["ve"]):
        return  # refused by check_objective
    x_0, t, eps = batch(process, 200, torch.float64)
    expected, expected_mse = objective("epsilon", weighting, process, SameFunction("epsilon", process, x_0, t, eps))(
        x_0, t, eps
    )
    loss, mse = objective(prediction, weighting, process, SameFunction(prediction, process, x_0, t, eps))(x_0, t, eps)
    torch.testing.assert_close(mse, expected_mse, rtol=2e-5, atol=1e-9)
    if isinstance(weighting, SimpleWeighting) and prediction not in ("epsilon", "score"):
        own = Denoiser(raw, process, prediction).parameterization
        to_epsilon = torch.exp(process.log_snr(t)) / x0_error_ratio(own, process, t)
        torch.testing.assert_close(loss * to_epsilon.to(loss), mse, rtol=1e-6, atol=0)
    else:
        torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:4], ids=lambda weighting: weighting.kind)
def test_v_trained_where_the_snr_is_zero_has_a_finite_loss(weighting):
    process = make_process(DdpmProcess(schedule=LinearSchedule(zero_terminal_snr=True)))
    x_0, t, eps = batch(process, 10)
    assert int(t[2]) == 1000
    scale = torch.ones((), requires_grad=True)
    loss, mse = objective("v", weighting, process, lambda x, t, y: scale * raw(x, t))(x_0, t, eps)
    loss.sum().backward()
    for actual in (loss, mse, gradient(scale)):
        assert bool(torch.isfinite(actual).all())


def test_labels_reach_the_network_and_time_is_the_networks():
    heard = []

    def network(x, time, label):
        heard.append((time.tolist(), label.tolist()))
        return x

    process = PROCESSES["linear"]
    x_0, _, eps = batch(process, 3)
    objective("epsilon", SimpleWeighting(), process, network)(x_0, torch.tensor([1, 5, 1000]), eps, torch.arange(3))
    assert heard == [([0, 4, 999], [0, 1, 2])]


class Network(torch.nn.Module):
    """Two parameters: a scale and, for a learned variance, a shift."""

    def __init__(self, doubled: bool = False) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))
        self.doubled = doubled

    def forward(self, x, time, label=None):
        output = self.scale * raw(x, time)
        return torch.cat([output, 0.3 * output], 1) if self.doubled else output


def test_its_children_are_all_that_is_trained():
    plain = objective("epsilon", SimpleWeighting(), PROCESSES["vp"], Network())
    assert [name for name, _ in plain.named_parameters()] == ["network.scale"]
    adaptive = objective("epsilon", AdaptiveWeighting(knots=4), PROCESSES["vp"], Network())
    assert [name for name, _ in adaptive.named_parameters()] == ["network.scale", "log_variance.values"]
    process = make_process(VpProcess(schedule=LearnedSchedule(width=3)))
    learned = objective("epsilon", VlbWeighting(), process, Network())
    assert {name for name, _ in learned.named_parameters()} == {
        "network.scale", "schedule.raw_weight", "schedule.raw_steepness", "schedule.shift",
    }  # fmt: skip
    assert list(objective("epsilon", SimpleWeighting(), PROCESSES["vp"], raw).parameters()) == []


@every_process
def test_the_adaptive_loss_is_the_simple_one_by_its_learned_variance(process):
    rows_of = batch(process, 40)
    adaptive = objective("x0", AdaptiveWeighting(knots=5), process)
    simple, mse = objective("x0", SimpleWeighting(), process)(*rows_of)
    start, _ = adaptive(*rows_of)
    assert torch.equal(start, simple)
    log_variance = adaptive.log_variance
    assert log_variance is not None
    with torch.no_grad():
        log_variance.values.copy_(torch.linspace(-2, 1, 5))
    u = log_variance(process.log_snr(rows_of[1]))
    actual, found_mse = adaptive(*rows_of)
    torch.testing.assert_close(actual, simple * torch.exp(-u) + u, rtol=1e-6, atol=0)
    assert torch.equal(found_mse, mse)
    actual.sum().backward()
    torch.testing.assert_close(
        gradient(log_variance.values).sum(), (1 - simple * torch.exp(-u)).sum(), rtol=1e-4, atol=1e-4
    )


STEPS = 20
LEARNED = make_process(DdpmProcess(num_train_timesteps=STEPS, schedule=LinearSchedule(beta_end=0.015),
                                   reverse_variance="learned"))  # fmt: skip
LEVELS = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1


class Doubled:
    """A network of a learned variance: prediction and interpolation by a smooth function."""

    def __call__(self, x, time, label=None):
        return torch.cat([0.8 * raw(x, time), torch.sin(x)], 1)


def all_steps(dtype=torch.float64):
    """One row a step, t = 1..T, of data on the 256-level grid."""
    generator = torch.Generator().manual_seed(4)
    x_0 = LEVELS[torch.randint(256, (STEPS, 2, 3, 3), generator=generator)]
    eps = torch.randn(STEPS, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x_0.to(dtype), torch.arange(1, STEPS + 1), eps.to(dtype)


@every_prediction
def test_the_variances_loss_over_all_steps_is_a_thousandth_of_the_bound(prediction):
    """Mean over t of the term = 0.001 (sum of L_{t-1} + L_0) / D: the factor T is there (Nichol & Dhariwal, 2021)."""
    x_0, t, eps = all_steps()
    denoiser = Denoiser(Doubled(), LEARNED, prediction)
    kernel = ReverseKernel(denoiser, clip_x0=False)
    bound = kernel.diffusion_kl(x_0[1:], t[1:], eps[1:]).sum() + kernel.reconstruction_nll(x_0[:1], eps[:1])[0]
    config = ObjectiveConfig(prediction=prediction, weighting=SimpleWeighting())
    with_term, _ = Objective(config, denoiser)(x_0, t, eps)
    plain = Denoiser(lambda x, time, y: Doubled()(x, time)[:, :2], PROCESSES["linear"], prediction)
    x_t = noisy(LEARNED, x_0, t, eps)
    output, interpolation = denoiser.split(denoiser.output(x_t, t))
    assert interpolation is not None
    x_theta = plain.parameterization.x0(output, x_t, *denoiser.coefficients(x_t, t))
    term = VARIANCE_LOSS_WEIGHT * reverse_kernel_loss(LEARNED, x_0, x_theta, t, interpolation)
    assert float(term.mean()) == pytest.approx(1e-3 * float(bound) / 18, rel=1e-9, abs=0)
    unlearned = make_process(DdpmProcess(num_train_timesteps=STEPS, schedule=LinearSchedule(beta_end=0.015)))
    without, _ = Objective(config, Denoiser(lambda x, time, y: Doubled()(x, time)[:, :2], unlearned, prediction))(
        x_0, t, eps
    )
    torch.testing.assert_close(with_term.double() - without.double(), term, rtol=1e-3, atol=2e-6)


@every_prediction
def test_the_bound_trains_the_second_half_of_the_channels_alone(prediction):
    """The gradient of the first half is that of the plain loss; of the second that of 0.001 T L / D."""
    x_0, t, eps = all_steps(torch.float32)
    output = torch.randn(STEPS, 4, 3, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    config = ObjectiveConfig(prediction=prediction, weighting=SnrWeighting())
    loss, _ = Objective(config, Denoiser(lambda x, time, y: output, LEARNED, prediction))(x_0, t, eps)
    (actual,) = torch.autograd.grad(loss.sum(), output)
    unlearned = make_process(DdpmProcess(num_train_timesteps=STEPS, schedule=LinearSchedule(beta_end=0.015)))
    plain, _ = Objective(config, Denoiser(lambda x, time, y: output[:, :2], unlearned, prediction))(x_0, t, eps)
    (expected,) = torch.autograd.grad(plain.sum(), output)
    assert torch.equal(actual[:, :2], expected[:, :2])
    fixed = output.detach().double().requires_grad_()
    for row in range(STEPS):
        at = slice(row, row + 1)
        one = Denoiser(lambda x, time, y, at=at: fixed[at], LEARNED, prediction)
        bound, image, noise = ReverseKernel(one, clip_x0=False), x_0[at].double(), eps[at].double()
        term = bound.diffusion_kl(image, t[at], noise) if row else bound.reconstruction_nll(image, noise)
        (term.sum() * 1e-3 * STEPS / 18).backward()
    torch.testing.assert_close(actual[:, 2:].double(), gradient(fixed)[:, 2:], rtol=2e-3, atol=1e-7)
    assert float(actual[:, 2:].abs().min()) > 0


def test_steps_without_the_first_have_no_reconstruction_term():
    x_0, t, _ = all_steps()
    interpolation = torch.zeros_like(x_0)
    whole = reverse_kernel_loss(LEARNED, x_0, 0.9 * x_0, t, interpolation)
    part = reverse_kernel_loss(LEARNED, x_0[1:], 0.9 * x_0[1:], t[1:], interpolation[1:])
    assert torch.equal(whole[1:], part)
    assert bool(torch.isfinite(whole).all())


def test_a_learned_variance_is_trained_where_the_snr_is_zero_too():
    process = make_process(DdpmProcess(num_train_timesteps=STEPS, reverse_variance="learned",
                                       schedule=LinearSchedule(beta_end=0.015, zero_terminal_snr=True)))  # fmt: skip
    x_0, t, eps = all_steps(torch.float32)
    output = torch.randn(STEPS, 4, 3, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    loss, _ = objective("v", SimpleWeighting(), process, lambda x, time, y: output)(x_0, t, eps)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(gradient(output)).all())


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**31))
@settings(deadline=None)
def test_averaging_over_ranks_gives_the_global_mean_whatever_the_padding(size, world, seed):
    losses = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    per_rank = math.ceil(size / world)
    padded = torch.cat([losses, torch.full((per_rank * world - size,), 1e3, dtype=torch.float64)])
    real = (torch.arange(len(padded)) < size).to(torch.float64)
    shares = [
        total_loss(padded[part], real[part], size, world)
        for part in (slice(r * per_rank, (r + 1) * per_rank) for r in range(world))
    ]
    assert float(sum(shares)) / world == pytest.approx(float(losses.mean()), rel=1e-12, abs=0)


def test_weights_of_rows_are_those_of_their_times():
    process = PROCESSES["vp"]
    x_0, t, eps = batch(process, 30)
    loss, mse = objective("epsilon", VlbWeighting(), process)(x_0, t, eps)
    expected = weights(VlbWeighting(), Denoiser(raw, process, "epsilon").parameterization, process, t)
    torch.testing.assert_close(loss, expected.float() * mse, rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", [{"prediction": "x0"}, {"sigma_data": 0.4}])
def test_an_objective_of_another_prediction_than_the_denoisers_is_refused(change):
    denoiser = Denoiser(lambda x, time, label: x, make_process(DdpmProcess()), "epsilon")
    with pytest.raises(ValueError, match=r"the denoiser's are epsilon and 0\.5; allowed: the same"):
        Objective(ObjectiveConfig(**change), denoiser)
