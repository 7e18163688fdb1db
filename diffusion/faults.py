"""Faults that a tired engineer could write, applied on purpose: `python -m diffusion.verify --fault NAME` must fail.

Each replaces one function or method of this package for as long as it is applied.
"""
# wrong versions take whatever the right ones take:
# pyright: basic

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion import (
    chain,
    denoiser,
    likelihood,
    objective,
    prediction,
    schedule,
    statements,
    time_sampling,
    weighting,
)
from diffusion.solvers import ddim, dpmpp_2m


@dataclass(frozen=True)
class Fault:
    """A wrong version of something.

    Attributes:
        text: what is wrong.
        holders: the modules and classes that hold the name.
        name: the function or method.
        wrong: given the right one, the wrong one.
    """

    text: str
    holders: tuple[Any, ...]
    name: str
    wrong: Callable[[Any], Any]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the wrong version in place, and the right one back."""
        right = getattr(self.holders[0], self.name)
        for holder in self.holders:
            setattr(holder, self.name, self.wrong(right))
        try:
            yield
        finally:
            for holder in self.holders:
                setattr(holder, self.name, right)


def _beta_for_beta_tilde(right: Callable[..., chain.Posterior]) -> Callable[..., chain.Posterior]:
    return lambda table, s, t: replace(right(table, s, t), variance=table.transition_variance(s, t))


def _beta_tilde_1_zero(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(table: schedule.Schedule, s: Tensor, t: Tensor, kind: str) -> Tensor:
        variance = right(table, s, t, kind)
        return torch.where(s == 0, torch.full_like(variance, 1e-20), variance) if kind == "beta_tilde" else variance

    return wrong


def _sigma_for_variance(right: Callable[..., chain.Posterior]) -> Callable[..., chain.Posterior]:
    def wrong(table: schedule.Schedule, s: Tensor, t: Tensor) -> chain.Posterior:
        return replace(right(table, s, t), coef_x_0=table.alpha[s] * table.transition_variance(s, t) / table.sigma[t])

    return wrong


def _off_by_one(right: Callable[..., None]) -> Callable[..., None]:
    def wrong(self: schedule.Schedule, betas: Tensor) -> None:
        right(self, torch.cat([betas[:1], betas[:-1]]))

    return wrong


def _without_scale(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda config: right(config) * config.num_train_timesteps / 1000


def _closed_ends(right: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    def wrong(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        low, high = (torch.special.ndtr((x + side / 255 - mean) / std) for side in (-1, 1))
        return torch.log(high - low)

    return wrong


def _same_on_every_rank(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(config: Any, generator: Any, batch_size: int, num_steps: int) -> Any:  # noqa: ANN401
        return np.tile(right(config, generator, max(1, batch_size // 8), num_steps), 8)[:batch_size]

    return wrong


def _no_factor(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda kind, table: right("epsilon", table)  # noqa: ARG005 - that is the fault


def _first_order(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(self: Any, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:  # noqa: ANN401
        self.previous = None
        return right(self, x_0, epsilon, t, s)

    return wrong


def _whole_log_snr(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(self: Any, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:  # noqa: ANN401
        if self.previous is not None:
            self.previous = (self.previous[0], 2 * self.previous[1])
        return right(self, x_0, epsilon, t, s)

    return wrong


def _eta_not_whole(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(self: Any, x_0: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:  # noqa: ANN401
        eta, self.eta = self.eta, self.eta * math.sqrt(0.5)
        try:
            return right(self, x_0, epsilon, t, s)
        finally:
            self.eta = eta

    return wrong


def _velocity_sign(right: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda x_0, eps, alpha, sigma: alpha * eps + sigma * x_0


def _bits_of_nats(right: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda nats, dimensions: nats / dimensions


DPMPP = dpmpp_2m.Dpmpp2MSolver
FAULTS = {
    "beta-for-beta-tilde": Fault(
        "the posterior has the forward variance", (chain, likelihood, ddim), "posterior", _beta_for_beta_tilde
    ),
    "sigma-for-variance": Fault(
        "the posterior divides by sigma, not sigma^2", (chain, likelihood, ddim), "posterior", _sigma_for_variance
    ),
    "beta-tilde-1-zero": Fault(
        "beta-tilde_1 is left at zero", (chain, likelihood), "reverse_variance", _beta_tilde_1_zero
    ),
    "alphas-cumprod-off-by-one": Fault("tables shifted by one step", (schedule.Schedule,), "__init__", _off_by_one),
    "betas-not-scaled": Fault("betas for T = 1000 used at any T", (schedule,), "betas", _without_scale),
    "closed-end-bins": Fault(
        "the decoder's end bins are closed", (likelihood,), "discretised_gaussian_log_prob", _closed_ends
    ),
    "same-t-on-every-rank": Fault(
        "every rank draws the same t", (time_sampling,), "draw_timesteps", _same_on_every_rank
    ),
    "no-prediction-factor": Fault(
        "min-SNR without its per-prediction factor", (weighting,), "epsilon_error_ratio", _no_factor
    ),
    "dpmpp-2m-first-order": Fault("DPM-Solver++ forgets its history", (DPMPP,), "step", _first_order),
    "dpmpp-2m-whole-log-snr": Fault("its last h in log-SNR, not half of it", (DPMPP,), "step", _whole_log_snr),
    "ddim-eta-not-whole": Fault("DDIM's variance without its whole eta", (ddim.DdimSolver,), "step", _eta_not_whole),
    "velocity-sign": Fault(
        "v = alpha eps + sigma x_0", (prediction, denoiser, objective, statements), "velocity", _velocity_sign
    ),
    "nats-for-bits": Fault("bits/dim without the factor ln 2", (likelihood,), "bits_per_dim", _bits_of_nats),
}
