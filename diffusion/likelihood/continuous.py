"""The continuous-time variational bound (Kingma et al. 2021) of any process; a chain is interpolated between its steps.

    -log P(x_0) <= KL(q(x_1 | x_0) || N(0, p^2 I))                                               prior, at t_max
                   + 1/2 integral of E ||eps - eps_theta(x_t, t)||^2 d log_snr                    diffusion
                   + E[-log p(x_0 | x_{t_min})],   p(x_0 | z) proportional to q(z | x_0)          reconstruction

The integral runs from log_snr(t_max) to log_snr(t_min): a schedule matters only through its two ends, and in continuous
time there is no reverse variance to choose. Like the discrete bound it bounds the probability of 8-bit data, without
dequantisation; unlike it, it is not a bound for the chain that samples. `continuous_vlb_bpd` is this bound, `vlb_bpd`
the discrete one, `nll_bpd` the negative log-likelihood of the probability-flow ODE: three metrics that cannot be
compared with one another.
"""

import math

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.likelihood.bound import Vlb, per_draw, split_noise, weighted_mean
from diffusion.likelihood.decoder import channel_log_prob
from diffusion.likelihood.discrete import prior_kl
from diffusion.likelihood.quantization import require_levels
from diffusion.process.kernels import diffuse
from diffusion.process.sde import Process


def log_snr_ends(process: Process) -> tuple[float, float]:
    """log-SNR at t_min and at t_max, the highest and the lowest.

    Raises:
        ValueError: a terminal SNR of zero, from which no integral over log-SNR can start.
    """
    high, low = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    if math.isinf(float(low)):
        raise ValueError(
            "process.schedule.zero_terminal_snr = true: log-SNR is -inf at t_max, so neither the continuous bound nor "
            "the probability-flow ODE can reach it; allowed: a schedule without it, or the discrete bound"
        )
    return float(high), float(low)


def diffusion_rate(denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
    """The integrand over t of the diffusion term: -(d log_snr / dt) ||eps - eps_theta(x_t, t)||^2 / 2.

    Args:
        denoiser: the model.
        x_0: data [B, ...].
        t: float64 [B] in [t_min, t_max].
        eps: noise, the shape of x_0.
        label: int64 [B], or None.

    Returns:
        Nats per unit of t, float64 [B].
    """
    x_t = diffuse(denoiser.process, x_0, t, eps)
    error = eps.to(torch.float64) - denoiser.epsilon(x_t, t, label).to(torch.float64)
    squared = error.square().flatten(1).sum(1)
    return -denoiser.process.dlogsnr_dt(t).to(squared) / 2 * squared


def reconstruction_nll(process: Process, x_0: Tensor, eps: Tensor) -> Tensor:
    """-log p(x_0 | x_{t_min}) by the channel decoder, nats, float64 [B]; it does not use the network.

    Args:
        process: the forward process.
        x_0: data on the 256-level grid of [-1, 1], [B, ...].
        eps: noise, the shape of x_0.
    """
    start = torch.tensor(process.t_min, dtype=torch.float64)
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    x, noise = x_0.to(torch.float64), eps.to(torch.float64)
    return -channel_log_prob(x, alpha * x + sigma * noise, alpha, sigma).flatten(1).sum(1)


def estimate_continuous_vlb(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weights: Tensor, label: Tensor | None = None
) -> Vlb:
    """An unbiased estimate of the continuous bound for each row of x_0.

    Args:
        denoiser: the model.
        x_0: data on the 256-level grid of [-1, 1], [B, C, H, W].
        t: times, float64 [B, K] (`TimeProposal.draw`).
        eps: noise [B, K + R, C, H, W], R >= 1; the reconstruction term is the mean over the last R draws.
        weights: 1 / density of each time, float64 [B, K].
        label: int64 [B], or None.

    Returns:
        The three terms, float64 nats [B].

    Raises:
        ValueError: data that are not on the levels, a terminal SNR of zero, or no noise for the reconstruction term.
        ArithmeticError: a term that is not finite.
    """
    require_levels(x_0)
    log_snr_ends(denoiser.process)
    process = denoiser.process
    inside, at_start = split_noise(eps, t.shape[1])
    rate = per_draw(lambda x, noise, y: diffusion_rate(denoiser, x, t.flatten(), noise, y), x_0, inside, label)
    nll = per_draw(lambda x, noise, _: reconstruction_nll(process, x, noise), x_0, at_start, None)
    return Vlb(
        prior=prior_kl(process, x_0),
        diffusion=weighted_mean(rate, weights),
        reconstruction=nll.mean(1),
    ).checked()
