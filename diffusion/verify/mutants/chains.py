"""Mutants of the discrete chain and its bound."""
# mutants take whatever the originals take:
# pyright: basic

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.likelihood import discrete as likelihood
from diffusion.process import betas, kernels as chain, sde
from diffusion.solvers import ancestral, ddim, predictor_corrector
from diffusion.verify.mutants.mutation import Mutation

POSTERIOR_USERS = (chain, likelihood, ancestral, ddim, predictor_corrector)


def _beta_for_beta_tilde(original: Callable[..., chain.Posterior]) -> Callable[..., chain.Posterior]:
    return lambda process, s, t: replace(original(process, s, t), variance=chain.transition_variance(process, s, t))


def _beta_tilde_1_zero(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mutant(process: sde.Process, s: Tensor, t: Tensor, kind: str) -> Tensor:
        variance = original(process, s, t, kind)
        return torch.where(s == 0, torch.full_like(variance, 1e-20), variance) if kind == "beta_tilde" else variance

    return mutant


def _sigma_for_variance(original: Callable[..., chain.Posterior]) -> Callable[..., chain.Posterior]:
    def mutant(process: sde.Process, s: Tensor, t: Tensor) -> chain.Posterior:
        coef_x_0 = process.alpha(s) * chain.transition_variance(process, s, t) / process.sigma(t)
        return replace(original(process, s, t), coef_x_0=coef_x_0)

    return mutant


def _sum_under_root(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    def mutant(process: sde.Process, s: Tensor, t: Tensor) -> Tensor:
        return torch.sqrt(process.alpha(s) ** 2 + process.sigma(t) ** 2) - process.alpha(t)

    return mutant


def _off_by_one(original: Callable[..., None]) -> Callable[..., None]:
    def mutant(self: sde.Chain, table: Tensor, reverse_variance: str = "beta") -> None:
        original(self, torch.cat([table[:1], table[:-1]]), reverse_variance)

    return mutant


def _without_scale(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda config: original(config) * config.num_train_timesteps / 1000


def _closed_ends(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    def mutant(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        low, high = (torch.special.ndtr((x + side / 255 - mean) / std) for side in (-1, 1))
        return torch.log(high - low)

    return mutant


def _bits_of_nats(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda nats, dimensions: nats / dimensions


def _half_entropy(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda process, x_0: original(process, x_0) + 0.5 * math.log(2 * math.pi)


MUTANTS = {
    "beta-for-beta-tilde": Mutation(
        "the posterior has the forward variance", 1, POSTERIOR_USERS, "posterior", _beta_for_beta_tilde
    ),
    "sigma-for-variance": Mutation(
        "the posterior divides by sigma, not sigma^2", 1, POSTERIOR_USERS, "posterior", _sigma_for_variance
    ),
    "prior-kl-with-2-pi": Mutation("the prior term keeps a log(2 pi)", 1, (likelihood,), "prior_kl", _half_entropy),
    "sum-under-root": Mutation(
        "sigma_{t|s}^2 from sqrt(alpha_s^2 + sigma_t^2)", 2, (chain,), "transition_variance", _sum_under_root
    ),
    "beta-tilde-1-zero": Mutation(
        "beta-tilde_1 is left at zero", 2, (chain, likelihood), "reverse_variance", _beta_tilde_1_zero
    ),
    "alphas-cumprod-off-by-one": Mutation("tables shifted by one step", 3, (sde.Chain,), "__init__", _off_by_one),
    "nats-for-bits": Mutation("bits/dim without the factor ln 2", 3, (likelihood,), "bits_per_dim", _bits_of_nats),
    "betas-not-scaled": Mutation("betas for T = 1000 used at any T", 4, (betas, sde), "betas", _without_scale),
    "closed-end-bins": Mutation(
        "the decoder's end bins are closed", 12, (likelihood,), "discretised_gaussian_log_prob", _closed_ends
    ),
}
