"""Mutants of the continuous bound and the probability-flow likelihood."""
# mutants take whatever the originals take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion import objective, weighting
from diffusion.config import LikelihoodWeighting
from diffusion.likelihood import continuous as continuous_bound, ode as ode_likelihood, screening
from diffusion.verify.mutants.mutation import Mutation

Anything = Callable[..., Any]


def _without_slope(original: Anything) -> Anything:
    def mutant(denoiser: Any, x_0: Tensor, t: Tensor, *rest: Any) -> Tensor:  # noqa: ANN401
        return original(denoiser, x_0, t, *rest) / -denoiser.process.dlogsnr_dt(t)

    return mutant


def _without_half(original: Anything) -> Anything:
    return lambda *arguments: 2 * original(*arguments)


def _likelihood_without_half(original: Anything) -> Anything:
    def mutant(config: Any, *rest: Any) -> Tensor:  # noqa: ANN401
        return original(config, *rest) * (2 if isinstance(config, LikelihoodWeighting) else 1)

    return mutant


def _redrawn(original: Anything) -> Anything:
    generator = torch.Generator().manual_seed(0)

    def mutant(flow: Any, index: Tensor, x: Tensor) -> Any:  # noqa: ANN401
        probes = original(flow, index, x)
        if flow.probe is None:
            return probes
        return [2.0 * torch.randint(2, probe.shape, generator=generator) - 1 for probe in probes]

    return mutant


def _score_sign(original: Anything) -> Anything:
    def mutant(*arguments: Any) -> Any:  # noqa: ANN401
        value, total = original(*arguments)
        return value, -total

    return mutant


def _no_prior(original: Anything) -> Anything:
    return lambda x, std: 0 * original(x, std)


def _no_offset(original: Anything) -> Anything:
    return lambda nats, dimensions: original(nats, dimensions) - ode_likelihood.DEQUANTISATION_OFFSET


def _beta_tilde_for_all(original: Anything) -> Anything:
    return lambda *arguments: original(*arguments[:3], "beta_tilde")


MUTANTS = {
    "rate-without-slope": Mutation(
        "the bound integrates over t, without d log_snr / dt", 5, (continuous_bound,), "diffusion_rate", _without_slope
    ),
    "diffusion-term-without-half": Mutation(
        "the continuous bound's 1/2 is missing", 6, (continuous_bound,), "diffusion_rate", _without_half
    ),
    "likelihood-weight-without-half": Mutation(
        "lambda = g^2 without its 1/2", 7, (weighting, objective), "weights", _likelihood_without_half
    ),
    "probe-redrawn": Mutation(
        "Hutchinson's noise is drawn anew at every evaluation", 8, (ode_likelihood.AugmentedFlow,), "_probes", _redrawn
    ),
    "divergence-sign": Mutation("the divergence of -eps_theta", 8, (ode_likelihood,), "divergence", _score_sign),
    "ode-without-prior": Mutation(
        "log p(x_T) is left out", 8, (ode_likelihood,), "standard_normal_log_prob", _no_prior
    ),
    "bits-without-offset": Mutation(
        "bits/dim of the data in [-1, 1], without 7", 8, (ode_likelihood,), "dequantised_bits_per_dim", _no_offset
    ),
    "screened-as-beta-tilde": Mutation(
        "screening takes every chain's Sigma for beta-tilde", 17, (screening,), "reverse_variance", _beta_tilde_for_all
    ),
    "screened-without-half": Mutation(
        "the 1/2 of the screened integral is missing", 17, (screening.DenoisingCurve,), "integral", _without_half
    ),
}
