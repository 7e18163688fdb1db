"""The discrete variational bound of equation (7), split into prior, diffusion and reconstruction terms.

-log p_theta(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0 (Ho et al. 2020, equation 5), with

    L_T     = KL(q(x_T | x_0) || N(0, I))
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t))
    L_0     = -log p_theta(x_0 | x_1), a Gaussian discretised to the data's 256 levels

It bounds the probability of the 8-bit data themselves, without dequantisation. Results are float64 nats per image;
`bits_per_dim` converts them.
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
    """Convert nats per image to bits per dimension: nats / (dimensions ln 2)."""
    return nats / (math.log(2) * dimensions)


def prior_kl(process: Process, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, p^2 I)) of each row, in closed form, nats, float64 [B].

    It is 1/2 sum(m^2 + v - 1 - log v) with m = alpha_T x_0 / p, v = sigma_T^2 / p^2 and p = `prior_std`, 1 but for
    `ve`.

    Args:
        process: the forward process.
        x_0: data [B, ...].
    """
    end = torch.tensor(process.t_max, dtype=torch.float64)
    mean = process.alpha(end) / process.prior_std * x_0.to(torch.float64)
    variance = (process.sigma(end) / process.prior_std) ** 2
    return 0.5 * (mean**2 + variance - 1 - torch.log(variance)).flatten(1).sum(1)


def gaussian_kl(mean_error: Tensor, variance: Tensor, model_variance: Tensor) -> Tensor:
    """KL(N(mu, v) || N(mu_theta, V)) = 1/2 (log(V / v) - 1 + v / V + (mu - mu_theta)^2 / V), elementwise.

    Args:
        mean_error: mu - mu_theta.
        variance: v, above 0, broadcastable.
        model_variance: V, above 0, broadcastable.

    Returns:
        Nats, of the arguments' common shape.
    """
    ratio = variance / model_variance
    return 0.5 * (ratio - 1 - torch.log(ratio) + mean_error.square() / model_variance)


@dataclass(frozen=True)
class ReverseKernel:
    """The reverse kernel p_theta(x_s | x_t) of equation (6) on the T steps of the process, as the bound evaluates it.

    Attributes:
        denoiser: the model; its process determines Sigma_theta.
        clip_x0: clamp the estimate of x_0 to [-1, 1]; this is part of the model that is scored.
    """

    denoiser: Denoiser
    clip_x0: bool = True

    @property
    def process(self) -> Process:
        """The forward process."""
        return self.denoiser.process

    def estimate(self, x_t: Tensor, s: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The estimate of x_0 that gives mu_theta, and the variance Sigma_theta.

        Args:
            x_t: [B, ...] at time t.
            s: times to step to [B].
            t: times to step from [B], s < t.
            label: int64 [B], or None.

        Returns:
            x_theta, the shape of x_t, and Sigma_theta, broadcastable to it; float64 both.
        """
        output, interpolation = self.denoiser.split(self.denoiser.output(x_t, t, label))
        x_0 = self.denoiser.parameterization.x0(output, x_t, *self.denoiser.coefficients(x_t, t)).to(torch.float64)
        if interpolation is not None:
            variance = learned_reverse_variance(self.process, s, t, interpolation)
        else:
            variance = expand_to(reverse_variance(self.process, s, t, self.process.reverse_variance), x_0)
        return (x_0.clamp(-1, 1) if self.clip_x0 else x_0), variance

    def diffusion_kl(self, x_0: Tensor, index: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """L_{t-1} at x_t = alpha_t x_0 + sigma_t eps, one draw of eps per row; nats, float64 [B].

        Args:
            x_0: data [B, ...].
            index: number of each row's step, int64 [B] in 2..T.
            eps: noise, the shape of x_0.
            label: int64 [B], or None.
        """
        times = self.process.step_times()
        s, t = times[index - 1], times[index]
        x_theta, variance = self.estimate(diffuse(self.process, x_0, t, eps), s, t, label)
        exact = posterior(self.process, s, t)
        mean_error = expand_to(exact.coef_x_0, x_theta) * (x_0.to(x_theta) - x_theta)
        return gaussian_kl(mean_error, expand_to(exact.variance, x_theta), variance).flatten(1).sum(1)

    def reconstruction_nll(self, x_0: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """L_0 at x_1 = alpha_1 x_0 + sigma_1 eps, one draw of eps per row; nats, float64 [B].

        Args:
            x_0: data on the 256-level grid of [-1, 1], [B, ...].
            eps: noise, the shape of x_0.
            label: int64 [B], or None.
        """
        s, t = (time.repeat(len(x_0)) for time in self.process.step_times()[:2])
        mean, variance = self.estimate(diffuse(self.process, x_0, t, eps), s, t, label)
        return -discretised_gaussian_log_prob(x_0, mean, variance.sqrt()).flatten(1).sum(1)


def reverse_kernel_loss(process: Process, x_0: Tensor, x_theta: Tensor, t: Tensor, interpolation: Tensor) -> Tensor:
    """T L_{t-1} / D for training a learned reverse variance, nats, float64 [B]; at t = 1 it is T L_0 / D.

    Its mean over uniform t is the bound's sum over steps, per dimension; without the factor T the variance would hardly
    learn.

    Args:
        process: the chain.
        x_0: data on the 256-level grid of [-1, 1], [B, ...].
        x_theta: the estimate of x_0, without gradient, so that only the variance learns from this loss.
        t: steps [B] in 1..T.
        interpolation: the network's output for `learned_reverse_variance`, [B, ...].
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
    """An unbiased estimate of the discrete bound for each row of x_0.

    Args:
        kernel: the model.
        x_0: data on the 256-level grid of [-1, 1], [B, C, H, W].
        steps: in 2..T, int64 [B, K]; the diffusion term is the mean over an image's K steps of weight times L_{t-1}.
        eps: noise [B, K + R, C, H, W], R >= 1; the reconstruction term is the mean over the last R draws.
        weights: 1 / probability of each step, float64 [B, K] (`StepProposal.draw`); None if the T - 1 steps are equally
            likely.
        label: int64 [B], or None.

    Returns:
        The three terms, float64 nats [B].

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
