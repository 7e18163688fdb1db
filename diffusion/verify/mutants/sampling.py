"""Mutants of the solvers."""
# mutants take whatever the originals take:
# pyright: basic

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion.process import kernels as chain, sde
from diffusion.process.sde import Process
from diffusion.solvers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm_stochastic,
    euler,
    euler_maruyama,
    guidance,
    heun,
    predictor_corrector,
    rk45,
    unipc,
)
from diffusion.verify.mutants.mutation import Mutation

EXTRAPOLATED_USERS = (dpmpp_2m, dpmpp_2m_sde)
TRAPEZIUM_USERS = (heun, edm_stochastic)
DRIFT_USERS = (euler, euler_maruyama)


def _first_order(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda x_0, h, x_0_previous, h_previous: x_0  # noqa: ARG005


def _whole_log_snr(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x_0, h, x_0_previous, h_previous: original(x_0, h, x_0_previous, 2 * h_previous)


def _half_variance(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mutant(solver: Any) -> Tensor:  # noqa: ANN401
        return original(solver) / 2

    return mutant


def _end_slope(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x_t, at_t, at_s, epsilon, epsilon_s: original(x_t, at_t, at_s, epsilon_s, epsilon_s)  # noqa: ARG005


def _halved_twice(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x_t, at_t, at_s, epsilon, epsilon_s: original(x_t, at_t, at_s, epsilon / 2, epsilon_s / 2)


def _curvature(factor: float) -> Callable[..., Any]:
    def made(original: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        return lambda history: [d * factor if k else d for k, d in enumerate(original(history))]

    return made


def _places_in_lambda(original: Callable[..., list[float]]) -> Callable[..., list[float]]:
    return lambda places, h: original([place * h for place in places], h)


def _nothing_ahead(original: Callable[..., list[float]]) -> Callable[..., list[float]]:
    return lambda places, h: [*original(places[:1], h), *[0.0] * (len(places) - 1)]


def _sde_drift(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutant(process: Process, at: Tensor) -> tuple[Tensor, Tensor]:
        on_x, on_epsilon = original(process, at)
        return on_x, 2 * on_epsilon

    return mutant


def _ode_drift(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutant(process: Process, at: Tensor) -> tuple[Tensor, Tensor]:
        on_x, on_epsilon = original(process, at)
        return on_x, on_epsilon / 2

    return mutant


def _noise_of_dt(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda process, times: original(process, times) * torch.sqrt(-times.diff())


def _vp_diffusion(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mutant(self: Process, t: Tensor) -> Tensor:
        if not isinstance(self, sde.SubVp):
            return original(self, t)
        log_snr = self.schedule.log_snr(t)
        return -torch.sigmoid(-log_snr) * self.schedule.dlogsnr_dt(t)

    return mutant


def _renewed_once(original: Callable[..., float]) -> Callable[..., float]:
    return lambda h: original(h / 2)


def _difference_of_stds(original: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG001
    return lambda at_t, at_hat: (at_hat.sigma - at_hat.alpha / at_t.alpha * at_t.sigma) ** 2


def _always_beta(original: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda process, s, t, kind: chain.transition_variance(process, s, t)  # noqa: ARG005


def _from_zero_to_one(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda process, s, t, interpolation: original(process, s, t, 2 * interpolation - 1)


def _one_more(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda strong, weak, scale: original(strong, weak, scale + 1)


def _batch_mean(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda score, z, snr: original(score, z, snr).mean().expand(len(score))


def _root_tau(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, score, z, tau: original(x, score, z / math.sqrt(2), tau)


def _norms_not_squared(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: torch.sqrt(original(x))


MUTANTS = {
    "dpmpp-2m-first-order": Mutation(
        "DPM-Solver++ forgets its history", 9, EXTRAPOLATED_USERS, "extrapolated", _first_order
    ),
    "dpmpp-2m-whole-log-snr": Mutation(
        "its last h in log-SNR, not half of it", 9, EXTRAPOLATED_USERS, "extrapolated", _whole_log_snr
    ),
    "dpmpp-3m-half-curvature": Mutation(
        "DPM-Solver++ (3M) takes half of its second derivative", 9, (dpmpp_3m,), "taylor", _curvature(0.5)
    ),
    "dpmpp-3m-twice-curvature": Mutation(
        "DPM-Solver++ (3M) takes twice its second derivative", 9, (dpmpp_3m,), "taylor", _curvature(2.0)
    ),
    "sde-2m-renewed-once": Mutation("SDE-2M takes 1 - e^{-h}", 9, (dpmpp_2m_sde,), "renewed", _renewed_once),
    "unipc-places-not-relative": Mutation("UniPC's places not divided by h", 9, (unipc,), "weights", _places_in_lambda),
    "unipc-nothing-ahead": Mutation("UniPC's corrector forgets its evaluation", 9, (unipc,), "weights", _nothing_ahead),
    "heun-end-slope": Mutation("Heun takes the end's slope, not the mean", 9, TRAPEZIUM_USERS, "trapezium", _end_slope),
    "heun-halved-twice": Mutation("Heun halves its sum twice", 9, TRAPEZIUM_USERS, "trapezium", _halved_twice),
    "edm-noise-of-difference": Mutation(
        "EDM adds noise of s_hat - s", 9, (edm_stochastic,), "added_variance", _difference_of_stds
    ),
    "ode-with-sde-drift": Mutation("the ODE has g^2, not g^2 / 2", 9, (euler,), "ode_coefficients", _sde_drift),
    "sde-with-ode-drift": Mutation(
        "the reverse SDE has g^2 / 2", 9, DRIFT_USERS, "reverse_sde_coefficients", _ode_drift
    ),
    "euler-maruyama-noise-of-dt": Mutation(
        "noise g dt, not g sqrt(dt)", 9, (euler_maruyama,), "step_stds", _noise_of_dt
    ),
    "rk45-with-sde-drift": Mutation("rk45's ODE has g^2", 11, (rk45,), "log_snr_coefficients", _sde_drift),
    "sub-vp-with-vp-diffusion": Mutation("sub-VP has VP's g^2", 11, (sde.Process,), "squared_diffusion", _vp_diffusion),
    "ddim-half-variance": Mutation("DDIM adds half of its variance", 11, (ddim,), "step_variances", _half_variance),
    "ancestral-always-beta": Mutation(
        "ancestral takes beta for beta-tilde", 11, (ancestral,), "reverse_variance", _always_beta
    ),
    "learned-variance-from-0-to-1": Mutation(
        "the interpolation is read as 0..1", 11, (ancestral,), "learned_reverse_variance", _from_zero_to_one
    ),
    "guidance-one-more": Mutation("a guidance of scale w is taken as 1 + w", 11, (guidance,), "guided", _one_more),
    "corrector-batch-mean": Mutation(
        "the corrector's step is the batch's mean", 14, (predictor_corrector,), "step_sizes", _batch_mean
    ),
    "corrector-norms-not-squared": Mutation(
        "tau from norms, not their squares", 14, (predictor_corrector,), "squared_norms", _norms_not_squared
    ),
    "langevin-root-tau": Mutation(
        "Langevin noise sqrt(tau), not sqrt(2 tau)", 14, (predictor_corrector,), "langevin_step", _root_tau
    ),
}
