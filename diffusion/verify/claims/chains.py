"""Claims 1 to 4 and 12: the discrete chain, its bound, and where it goes as T grows."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch

from diffusion.likelihood import discrete as likelihood
from diffusion.process import kernels as chain
from diffusion.process.sde import Chain, Process
from diffusion.verify.claims.check import CHAIN_SCHEDULES, DATA, Check, ddpm


def _prior(process: Process) -> float:
    """L_T at the data's root mean square, nats; L_T is quadratic in x_0."""
    return float(likelihood.prior_kl(process, torch.full((1, 1), math.sqrt(DATA.variance), dtype=torch.float64)))


def _mismatch(process: Process) -> float:
    """KL(q(x_T) || N(0, I)), nats."""
    marginal = float(DATA.variance_at(process, torch.tensor([process.num_steps])))
    return 0.5 * (marginal - 1 - math.log(marginal))


def true_reverse_chain(quick: bool) -> Iterator[Check]:  # noqa: ARG001 - it is quick
    """Claim 1: with the true mu and Sigma, VLB - H(x) = KL(q(x_T) || N(0, I)) on Gaussian data."""
    for kind in CHAIN_SCHEDULES:
        process = ddpm(kind, 1000)
        t = torch.arange(2, 1001)
        q = chain.posterior(process, t - 1, t)
        spread = q.coef_x_0**2 * DATA.x0_variance(process, t)  # of the posterior mean, given x_t
        true_variance = q.variance + spread
        diffusion = 0.5 * torch.log(true_variance / q.variance).sum()  # the other terms cancel
        reconstruction = 0.5 * torch.log(2 * math.pi * math.e * DATA.x0_variance(process, torch.tensor([1])))
        gap = _prior(process) + float(diffusion) + float(reconstruction) - DATA.entropy - _mismatch(process)
        yield Check(f"{kind}-1000: VLB - H(x) - KL of the prior, nats", gap, 0.0, 1e-8)


def fixed_reverse_variance(quick: bool) -> Iterator[Check]:
    """Claim 2: Sigma = beta costs c / T bits; Sigma = beta-tilde a constant, with beta-tilde_1 := beta-tilde_2."""
    steps = 2000 if quick else 4000
    for kind, constant in (("linear", 1.58), ("cosine", 0.88)):
        gap = steps * _gap(ddpm(kind, steps), "beta")
        yield Check(f"{kind}: T x gap of Sigma = beta, bits, T = {steps}", gap, constant, 0.02 * constant)
    yield Check(
        "linear: gap of Sigma = beta-tilde at T = 4000, bits",
        _gap(ddpm("linear", 4000), "beta_tilde"),
        0.70,
        0.005,
    )


def _gap(process: Process, variance: str) -> float:
    """VLB - H(x) - KL(q(x_T) || N(0, I)), bits per dimension, with a Gaussian decoder of variance Sigma_1."""
    process.reverse_variance = variance
    kernel = likelihood.ReverseKernel(DATA.denoiser(process), clip_x0=False)
    t = torch.arange(2, process.num_steps + 1)
    terms = torch.zeros(len(t), dtype=torch.float64)
    for x_sign in (-1, 1):  # L_{t-1} is quadratic in (x_0, eps): its sign corners average to its mean
        for eps_sign in (-1, 1):
            x_0 = torch.full((len(t), 1), x_sign * math.sqrt(DATA.variance), dtype=torch.float64)
            terms += kernel.diffusion_kl(x_0, t, torch.full_like(x_0, eps_sign)) / 4
    first, zero = torch.tensor([1]), torch.tensor([0])
    decoder = float(chain.reverse_variance(process, zero, first, variance))
    reconstruction = 0.5 * (math.log(2 * math.pi * decoder) + float(DATA.x0_variance(process, first)) / decoder)
    return (_prior(process) + float(terms.sum()) + reconstruction - DATA.entropy - _mismatch(process)) / math.log(2)


def published_end(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Claim 3: DDPM's linear schedule of 1000 steps has the published alphas_cumprod_T and L_T."""
    process = ddpm("linear", 1000)
    alphas_cumprod = float(process.alpha(torch.tensor(1000)) ** 2)
    yield Check("linear-1000: alphas_cumprod_T x 1e5", alphas_cumprod * 1e5, 4.0358, 5e-5)
    x_0 = torch.full((1, 12), math.sqrt(1 / 3), dtype=torch.float64)
    bits = float(likelihood.bits_per_dim(likelihood.prior_kl(process, x_0), 12))
    yield Check("linear-1000: L_T at E[x^2] = 1/3, bits/dim x 1e6", bits * 1e6, 9.7, 0.05)


def continuous_limit(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Claim 4: alphas_cumprod -> exp(-integral of beta), as 1 / N; equation (12) with beta(i / N) = N beta_i."""
    for grid, constant in (("linspace", 0.81), ("beta(i / N) = N beta_i", 1.93)):
        errors = [_discretisation_error(grid, steps) for steps in (100, 1000, 10_000)]
        yield Check(f"{grid}: N x max error at N = 10000", errors[2] * 10_000, constant, 0.01 * constant)
        for (coarse, fine), steps in zip(pairwise(errors), (100, 1000), strict=True):
            yield Check(f"{grid}: error at {steps} / error at {10 * steps}", coarse / fine, 10.0, 0.5)


def _discretisation_error(grid: str, steps: int) -> float:
    index = torch.arange(1, steps + 1)
    time = index.double() / steps
    process = ddpm("linear", steps) if grid == "linspace" else Chain((0.1 + 19.9 * time) / steps)
    limit = torch.exp(-(0.1 * time + 19.9 * time**2 / 2))
    return float((process.alpha(index) ** 2 - limit).abs().max())


def decoder_mass(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Claim 12: the discretised decoder's 256 bins, the end ones open, sum to one."""
    levels = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1
    for mean in (-3.0, -0.2, 0.999, 40.0):
        for std in (1e-3, 0.1, 10.0):
            mass = likelihood.discretised_gaussian_log_prob(levels, torch.tensor(mean), torch.tensor(std)).exp().sum()
            yield Check(f"sum of 256 bins, mean {mean:g}, std {std:g}", float(mass), 1.0, 1e-12)
