"""The discrete variational bound of equation (7), split into prior, diffusion and reconstruction terms.

-log p_theta(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0 with
  L_T     = KL(q(x_T | x_0) || N(0, I)),
  L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)),
  L_0     = -log p_theta(x_0 | x_1), a Gaussian discretised to the data's 256 levels.

The bound is on the probability of the 8-bit data themselves, so no dequantisation enters. Results are float64 nats per
image; `bits_per_dim` converts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.likelihood.bound import Vlb, per_draw, split_noise, weighted_mean
from diffusion.likelihood.decoder import discretised_gaussian_log_prob
from diffusion.likelihood.quantization import require_levels
from diffusion.process.kernels import diffuse, learned_reverse_variance, posterior, reverse_variance
from diffusion.process.sde import Process
from diffusion.tensors import expand_to


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats per image to bits per dimension."""
    return nats / (math.log(2) * dimensions)


def prior_kl(process: Process, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, p^2 I)) of each row, exact, float64 [B]; p = `prior_std`, 1 unless variance explodes.

    1/2 sum(m^2 + v - 1 - log v) with m = alpha_T x_0 / p, v = sigma_T^2 / p^2.
    """
    end = torch.tensor(process.t_max, dtype=torch.float64)
    mean = process.alpha(end) / process.prior_std * x_0.to(torch.float64)
    variance = (process.sigma(end) / process.prior_std) ** 2
    return 0.5 * (mean**2 + variance - 1 - torch.log(variance)).flatten(1).sum(1)


def gaussian_kl(mean_error: Tensor, variance: Tensor, model_variance: Tensor) -> Tensor:
    """KL(N(mu, v) || N(mu_theta, V)) of each element: 1/2 (log(V / v) - 1 + v / V + (mu - mu_theta)^2 / V)."""
    ratio = variance / model_variance
    return 0.5 * (ratio - 1 - torch.log(ratio) + mean_error.square() / model_variance)


@dataclass(frozen=True)
class ReverseKernel:
    """p_theta(x_s | x_t) as the bound sees it, on the T steps of the process.

    Attributes:
        denoiser: the model; its process says which Sigma_theta.
        clip_x0: hold the estimate of x_0 within [-1, 1]; part of the model that is scored.
    """

    denoiser: Denoiser
    clip_x0: bool = True

    @property
    def process(self) -> Process:
        """The forward process."""
        return self.denoiser.process

    def estimate(self, x_t: Tensor, s: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The estimate of x_0 from which mu_theta is made, and Sigma_theta, float64 and broadcastable to it."""
        output, interpolation = self.denoiser.split(self.denoiser.output(x_t, t, label))
        x_0 = self.denoiser.parameterization.x0(output, x_t, *self.denoiser.coefficients(x_t, t)).to(torch.float64)
        if interpolation is not None:
            variance = learned_reverse_variance(self.process, s, t, interpolation)
        else:
            variance = expand_to(reverse_variance(self.process, s, t, self.process.reverse_variance), x_0)
        return (x_0.clamp(-1, 1) if self.clip_x0 else x_0), variance

    def diffusion_kl(self, x_0: Tensor, index: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """L_{t-1} at x_t = alpha_t x_0 + sigma_t eps, for steps `index` int64 [B] in 2..T; float64 [B]."""
        times = self.process.step_times()
        s, t = times[index - 1], times[index]
        x_theta, variance = self.estimate(diffuse(self.process, x_0, t, eps), s, t, label)
        exact = posterior(self.process, s, t)
        mean_error = expand_to(exact.coef_x_0, x_theta) * (x_0.to(x_theta) - x_theta)
        return gaussian_kl(mean_error, expand_to(exact.variance, x_theta), variance).flatten(1).sum(1)

    def reconstruction_nll(self, x_0: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """L_0 at x_1 = alpha_1 x_0 + sigma_1 eps, for data on the 256-level grid of [-1, 1]; float64 [B]."""
        s, t = (time.repeat(len(x_0)) for time in self.process.step_times()[:2])
        mean, variance = self.estimate(diffuse(self.process, x_0, t, eps), s, t, label)
        return -discretised_gaussian_log_prob(x_0, mean, variance.sqrt()).flatten(1).sum(1)


def reverse_kernel_loss(process: Process, x_0: Tensor, x_theta: Tensor, t: Tensor, interpolation: Tensor) -> Tensor:
    """T L_{t-1} / D of a learned reverse variance at steps t = 1..T of a chain, in nats, float64 [B].

    The mean over t is the bound's sum over steps: without the factor T the variance would hardly learn.
    """
    s = t - 1
    exact = posterior(process, s, t)
    variance = learned_reverse_variance(process, s, t, interpolation)
    mean_error = expand_to(exact.coef_x_0, variance) * (x_0.to(variance) - x_theta.to(variance))
    positive = torch.where(t == 1, 1.0, exact.variance)
    loss = gaussian_kl(mean_error, expand_to(positive, variance), variance).flatten(1).mean(1)
    first = (t == 1).nonzero().flatten().to(x_0.device)
    nll = -discretised_gaussian_log_prob(x_0[first], x_theta[first], variance[first].sqrt())
    return process.num_steps * loss.index_copy(0, first, nll.flatten(1).mean(1))


def estimate_vlb(
    kernel: ReverseKernel,
    x_0: Tensor,
    steps: Tensor,
    eps: Tensor,
    *,
    weights: Tensor | None = None,
    label: Tensor | None = None,
) -> Vlb:
    """An unbiased estimate of the bound of each row of x_0 [B, C, H, W].

    Args:
        kernel: the model.
        x_0: data on the 256-level grid of [-1, 1].
        steps: in 2..T, int64 [B, K]; an image's diffusion term is the mean over its K steps of weight times L_{t-1}.
        eps: noise [B, K + R, C, H, W], R >= 1; the last R draws are for the reconstruction term, their mean.
        weights: 1 / probability of each step, float64 [B, K] (`StepProposal.draw`); None where all T - 1 are as likely.
        label: int64 [B], or None.

    Raises:
        ValueError: data that are not on the levels, or no noise for the reconstruction term.
        ArithmeticError: a term that is not finite.
    """
    require_levels(x_0)
    at_steps, at_first = split_noise(eps, steps.shape[1])
    kl = per_draw(lambda x, noise, y: kernel.diffusion_kl(x, steps.flatten(), noise, y), x_0, at_steps, label)
    nll = per_draw(kernel.reconstruction_nll, x_0, at_first, label)
    return Vlb(
        prior=prior_kl(kernel.process, x_0),
        diffusion=weighted_mean(kl, kernel.process.num_steps - 1 if weights is None else weights),
        reconstruction=nll.mean(1),
    ).checked()
