"""Faults in the continuous bound and the probability-flow likelihood."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion import objective, weighting
from diffusion.config import LikelihoodWeighting
from diffusion.likelihood import continuous as continuous_bound
from diffusion.likelihood import ode as ode_likelihood
from diffusion.likelihood import screening
from diffusion.verify.faults.fault import Fault

Anything = Callable[..., Any]


def _without_slope(right: Anything) -> Anything:
    def wrong(denoiser: Any, x_0: Tensor, t: Tensor, *rest: Any) -> Tensor:  # noqa: ANN401
        return right(denoiser, x_0, t, *rest) / -denoiser.process.dlogsnr_dt(t)

    return wrong


def _without_half(right: Anything) -> Anything:
    return lambda *arguments: 2 * right(*arguments)


def _likelihood_without_half(right: Anything) -> Anything:
    def wrong(config: Any, *rest: Any) -> Tensor:  # noqa: ANN401
        return right(config, *rest) * (2 if isinstance(config, LikelihoodWeighting) else 1)

    return wrong


def _redrawn(right: Anything) -> Anything:
    generator = torch.Generator().manual_seed(0)

    def wrong(flow: Any, index: Tensor, x: Tensor) -> Any:  # noqa: ANN401
        probes = right(flow, index, x)
        if flow.probe is None:
            return probes
        return [2.0 * torch.randint(2, probe.shape, generator=generator) - 1 for probe in probes]

    return wrong


def _score_sign(right: Anything) -> Anything:
    def wrong(*arguments: Any) -> Any:  # noqa: ANN401
        value, total = right(*arguments)
        return value, -total

    return wrong


def _no_prior(right: Anything) -> Anything:
    return lambda x, std: 0 * right(x, std)


def _no_offset(right: Anything) -> Anything:
    return lambda nats, dimensions: right(nats, dimensions) - ode_likelihood.OFFSET


def _beta_tilde_for_all(right: Anything) -> Anything:
    return lambda *arguments: right(*arguments[:3], "beta_tilde")


FAULTS = {
    "rate-without-slope": Fault(
        "the bound integrates over t, without d log_snr / dt", 5, (continuous_bound,), "diffusion_rate", _without_slope
    ),
    "diffusion-term-without-half": Fault(
        "the continuous bound's 1/2 is missing", 6, (continuous_bound,), "diffusion_rate", _without_half
    ),
    "likelihood-weight-without-half": Fault(
        "lambda = g^2 without its 1/2", 7, (weighting, objective), "weights", _likelihood_without_half
    ),
    "probe-redrawn": Fault(
        "Hutchinson's noise is drawn anew at every evaluation", 8, (ode_likelihood.AugmentedFlow,), "_probes", _redrawn
    ),
    "divergence-sign": Fault("the divergence of -eps_theta", 8, (ode_likelihood,), "divergence", _score_sign),
    "ode-without-prior": Fault("log p(x_T) is left out", 8, (ode_likelihood,), "standard_normal_log_prob", _no_prior),
    "bits-without-offset": Fault(
        "bits/dim of the data in [-1, 1], without 7", 8, (ode_likelihood,), "dequantised_bits_per_dim", _no_offset
    ),
    "screened-as-beta-tilde": Fault(
        "screening takes every chain's Sigma for beta-tilde", 17, (screening,), "reverse_variance", _beta_tilde_for_all
    ),
    "screened-without-half": Fault(
        "the 1/2 of the screened integral is missing", 17, (screening.DenoisingCurve,), "integral", _without_half
    ),
}
