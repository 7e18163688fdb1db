"""The discrete bound's estimate: weighted steps, labels, learned reverse variance, a terminal SNR of zero, refusals."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.config import CosineSchedule, DdpmProcess, LinearSchedule, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.likelihood.discrete import ReverseKernel, Vlb, estimate_vlb, gaussian_kl, reverse_kernel_loss
from diffusion.likelihood.proposal import StepProposal
from diffusion.likelihood.quantization import level_values
from diffusion.process.kernels import learned_reverse_variance, posterior
from diffusion.process.sde import Process, make_process
from diffusion.tensors import expand_to

LEVELS = level_values(torch.zeros(1))


def chain(**options: object) -> Process:
    return make_process(DdpmProcess.model_validate({"num_train_timesteps": 40, **options}))


def smooth(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    shift = 0 if label is None else expand_to(label, x)
    return torch.sin(2 * x + expand_to(time / 40, x) + shift) * 0.8


def images(count: int) -> Tensor:
    return LEVELS[torch.randint(256, (count, 1, 2, 2), generator=torch.Generator().manual_seed(1))]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("proposed", [True, False])
def test_every_step_in_its_share_of_draws_gives_the_whole_sum(proposed):
    """With the same noise for all draws, steps drawn in proportion to a proposal weigh up to the sum over all steps."""
    process = chain(schedule=LinearSchedule())
    kernel = ReverseKernel(Denoiser(smooth, process, "epsilon"))
    x_0, eps = images(3), noise(3, 1, 1, 2, 2)
    shares = torch.arange(39) % 4 + 1 if proposed else torch.ones(39)
    proposal = StepProposal(shares.double() / shares.sum())
    draws = int(shares.sum())
    steps, weights = proposal.draw(((torch.arange(draws) + 0.5) / draws).double().expand(3, draws))
    vlb = estimate_vlb(kernel, x_0, steps, eps.expand(3, draws + 1, 1, 2, 2), weights=weights if proposed else None)
    for i in range(3):
        row = slice(i, i + 1)
        terms = [kernel.diffusion_kl(x_0[row], torch.tensor([t]), eps[row, 0]) for t in range(2, 41)]
        assert float(vlb.diffusion[i]) == pytest.approx(float(sum(terms)), rel=1e-12)
        assert float(vlb.reconstruction[i]) == pytest.approx(float(kernel.reconstruction_nll(x_0[row], eps[row, 0])))


def test_the_reconstruction_term_is_the_mean_over_its_draws():
    kernel = ReverseKernel(Denoiser(smooth, chain(), "epsilon", null_label=2))
    x_0, eps, steps, label = images(2), noise(2, 5, 1, 2, 2), torch.tensor([[2, 20], [3, 5]]), torch.tensor([0, 1])
    vlb = estimate_vlb(kernel, x_0, steps, eps, label=label)
    expected = torch.stack([kernel.reconstruction_nll(x_0, eps[:, draw], label) for draw in (2, 3, 4)]).mean(0)
    torch.testing.assert_close(vlb.reconstruction, expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="eps holds 2 draws an image; allowed: at least 3"):
        estimate_vlb(kernel, x_0, steps, eps[:, :2])


def test_each_row_has_its_own_label():
    kernel = ReverseKernel(Denoiser(smooth, chain(), "epsilon", null_label=2))
    x_0, eps, steps = images(2), noise(2, 4, 1, 2, 2), torch.tensor([[2, 20, 40], [3, 5, 30]])
    label = torch.tensor([0, 1])
    whole = estimate_vlb(kernel, x_0, steps, eps, label=label)
    for i in range(2):
        row = slice(i, i + 1)
        alone = estimate_vlb(kernel, x_0[row], steps[row], eps[row], label=label[row])
        torch.testing.assert_close(alone.diffusion, whole.diffusion[row], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.reconstruction, whole.reconstruction[row], rtol=1e-12, atol=0)
    null = estimate_vlb(kernel, x_0, steps, eps, label=torch.tensor([2, 2]))
    assert torch.equal(estimate_vlb(kernel, x_0, steps, eps).total, null.total)
    assert not torch.isclose(null.total, whole.total).any()


@pytest.mark.parametrize(("interpolation", "kind"), [(1.0, "beta"), (-1.0, "beta_tilde"), (0.3, "between")])
def test_a_learned_reverse_variance_is_what_is_scored(interpolation, kind):
    learned = chain(reverse_variance="learned")

    def network(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        return torch.cat([smooth(x, time, label), torch.full_like(x, interpolation)], dim=1)

    x_0, eps = images(3), noise(3, 3, 1, 2, 2)
    steps = torch.tensor([[2, 40], [7, 8], [20, 3]])
    actual = estimate_vlb(ReverseKernel(Denoiser(network, learned, "epsilon")), x_0, steps, eps)
    if kind != "between":
        fixed = Denoiser(smooth, chain(reverse_variance=kind), "epsilon")
        expected = estimate_vlb(ReverseKernel(fixed), x_0, steps, eps)
        torch.testing.assert_close(actual.total, expected.total, rtol=1e-10, atol=0)
        return
    s, t = steps[:, 0].double() - 1, steps[:, 0].double()
    kernel = ReverseKernel(Denoiser(network, learned, "epsilon"))
    variance = learned_reverse_variance(learned, s, t, torch.full_like(x_0, interpolation))
    exact = posterior(learned, s, t)
    x_t = expand_to(learned.alpha(t), x_0) * x_0 + expand_to(learned.sigma(t), x_0) * eps[:, 0]
    x_theta = kernel.denoiser.x0(x_t, t).clamp(-1, 1)
    error = expand_to(exact.coef_x_0, x_0) * (x_0 - x_theta)
    expected = gaussian_kl(error, expand_to(exact.variance, x_0), variance).flatten(1).sum(1)
    torch.testing.assert_close(kernel.diffusion_kl(x_0, steps[:, 0], eps[:, 0]), expected, rtol=1e-10, atol=0)


def test_the_loss_of_a_learned_variance_is_the_bound_itself():
    """Its rows are T L_{t-1} / D, the first the decoder's."""
    process = chain(reverse_variance="learned")

    def network(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        return torch.cat([smooth(x, time, label), torch.cos(x)], dim=1)

    denoiser = Denoiser(network, process, "epsilon")
    kernel = ReverseKernel(denoiser, clip_x0=False)
    x_0, eps, t = images(4), noise(4, 1, 2, 2), torch.tensor([1, 2, 40, 1])
    alpha, sigma = (expand_to(c(t.double()), x_0) for c in (process.alpha, process.sigma))
    x_t = alpha * x_0 + sigma * eps
    prediction, interpolation = denoiser.split(denoiser.output(x_t, t.double()))
    assert interpolation is not None
    x_theta = denoiser.parameterization.x0(prediction, x_t, alpha, sigma)
    loss = reverse_kernel_loss(process, x_0, x_theta, t, interpolation)
    later, first = torch.tensor([1, 2]), torch.tensor([0, 3])
    expected = torch.empty(4, dtype=torch.float64)
    expected[later] = kernel.diffusion_kl(x_0[later], t[later], eps[later])
    expected[first] = kernel.reconstruction_nll(x_0[first], eps[first])
    torch.testing.assert_close(loss, process.num_steps * expected / 4, rtol=1e-10, atol=0)


def test_a_terminal_snr_of_zero_is_fine_for_v_and_named_for_epsilon():
    process = chain(schedule=CosineSchedule(zero_terminal_snr=True))
    x_0, eps, steps = images(2), noise(2, 3, 1, 2, 2), torch.tensor([[2, 40], [40, 20]])
    vlb = estimate_vlb(ReverseKernel(Denoiser(smooth, process, "v")), x_0, steps, eps)
    assert vlb.prior.tolist() == [0, 0]
    assert bool(vlb.total.isfinite().all())
    for prediction in ("epsilon", "score", "edm"):
        with pytest.raises(ValueError, match=f"prediction = {prediction} says nothing of x_0 .*; use v or x0"):
            Denoiser(smooth, process, prediction)


@pytest.mark.parametrize("scale", [127.5, 0.9])
def test_data_off_the_levels_are_refused(scale):
    kernel = ReverseKernel(Denoiser(smooth, make_process(VpProcess(num_train_timesteps=40)), "epsilon"))
    with pytest.raises(ValueError, match=r"scale 8-bit pixels p as 2 p / 255 - 1"):
        estimate_vlb(kernel, scale * images(1), torch.tensor([[2]]), noise(1, 2, 1, 2, 2))


@pytest.mark.parametrize("name", ["prior", "diffusion", "reconstruction"])
def test_the_term_and_rows_that_are_no_numbers_are_named(name):
    terms = dict.fromkeys(("prior", "diffusion", "reconstruction"), torch.ones(3))
    assert Vlb(**terms).checked().total.tolist() == [3, 3, 3]
    terms[name] = torch.tensor([1.0, math.nan, math.inf])
    with pytest.raises(ArithmeticError, match=rf"the bound's {name} term is not finite for rows \[1, 2\]"):
        Vlb(**terms).checked()
