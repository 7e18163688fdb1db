"""Claims 5 to 8: the continuous bound, its limit and what it bounds, and the probability-flow log-likelihood.

Nothing is drawn at random: integrals are Gauss-Legendre sums, and expectations over eps are means over its corners
(all entries 1 or -1), which are exact for functions quadratic in eps.
"""
# numpy.polynomial has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion import weighting
from diffusion.config import GeometricSchedule, LikelihoodWeighting, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData, MixtureData
from diffusion.likelihood import continuous as continuous_bound, discrete as likelihood, ode as ode_likelihood
from diffusion.prediction import Parameterization
from diffusion.process.schedule import Schedule
from diffusion.process.sde import Process, Vp, make_process
from diffusion.solvers import euler
from diffusion.solvers.dormand_prince import DormandPrince
from diffusion.verify.claims.check import DATA, Check
from diffusion.verify.claims.orders import vp_from

ASSUMED_DATA = GaussianData(0.1, 0.5)  # the distribution that claim 5's denoiser is exact for; the data are others
TWO_LEVELS = torch.tensor([[[13.0, 190.0]]], dtype=torch.float64) * (2 / 255) - 1


@dataclass(frozen=True)
class Curve(Schedule):
    """A schedule whose log-SNR runs from 13.3 to -13.3 along a given curve.

    Attributes:
        rise: h(t), rising from h(0) = 0 to h(1) = 1.
        slope_of_rise: h'(t).
    """

    rise: Callable[[Tensor], Tensor]
    slope_of_rise: Callable[[Tensor], Tensor]

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR 13.3 - 26.6 h(t)."""
        return 13.3 - 26.6 * self.rise(t)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """The derivative -26.6 h'(t)."""
        return -26.6 * self.slope_of_rise(t)


CURVES = {
    "linear": Curve(lambda t: t, torch.ones_like),
    "cubic": Curve(lambda t: t**3, lambda t: 3 * t**2),
    "sin^2": Curve(lambda t: torch.sin(math.pi / 2 * t) ** 2, lambda t: math.pi / 2 * torch.sin(math.pi * t)),
}


def nodes(start: float, end: float, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights of [start, end], float64 [count] each."""
    place, weight = (torch.tensor(values) for values in np.polynomial.legendre.leggauss(count))
    return (start + end) / 2 + (end - start) / 2 * place, (end - start) / 2 * weight


def corner_mean(denoiser: Denoiser, x_0: Tensor, t: Tensor) -> Tensor:
    """E over eps of the diffusion rate at times t [K] for one image x_0 [1, ...]; float64 [K]."""
    repeated = x_0.expand(len(t), *x_0.shape[1:])
    corners = (torch.full_like(repeated, sign) for sign in (-1, 1))
    return sum((continuous_bound.diffusion_rate(denoiser, repeated, t, eps) / 2 for eps in corners), t.new_zeros(()))


def schedule_independence(quick: bool) -> Iterator[Check]:
    """Claim 5: a wrong denoiser's continuous bound is equal under three schedules; its spread over t is not."""
    count, totals_and_spreads = (200 if quick else 400), dict[str, tuple[float, float]]()
    for name, curve in CURVES.items():
        process = Vp(VpProcess(), curve)
        denoiser = ASSUMED_DATA.denoiser(process)
        t, weights = nodes(process.t_min, process.t_max, count)
        corners = torch.ones(2, count + 1, 1, 2, dtype=torch.float64) * torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        vlb = continuous_bound.estimate_continuous_vlb(
            denoiser, TWO_LEVELS.expand(2, 1, 2), t.repeat(2, 1), corners, count * weights.repeat(2, 1)
        )
        rate = corner_mean(denoiser, TWO_LEVELS, t)
        spread = math.sqrt(float((weights * rate**2).sum() - (weights * rate).sum() ** 2))
        totals_and_spreads[name] = float(vlb.total.mean()), spread
    total, spread = totals_and_spreads["linear"]
    for name, factor in (("cubic", 1.0550), ("sin^2", 1.1829)):
        yield Check(f"continuous bound, nats: {name} - linear", totals_and_spreads[name][0] - total, 0.0, 1e-10)
        yield Check(f"spread over t of one draw: {name} / linear", totals_and_spreads[name][1] / spread, factor, 1e-3)


def limit_of_the_chain(quick: bool) -> Iterator[Check]:
    """Claim 6: an exact denoiser's diffusion term at T steps exceeds its limit by c / T; log-SNR is linear in t."""
    steps = (64, 128, 256) if quick else (64, 128, 256, 512)
    gaps = [_gap(count) for count in steps]
    process = _linear_process(64)
    high, low = continuous_bound.log_snr_ends(process)
    closed = (math.log1p(DATA.variance * math.exp(high)) - math.log1p(DATA.variance * math.exp(low))) / 2
    yield Check("limit, nats, by the diffusion rate - closed form", _limit(process) - closed, 0.0, 1e-10)
    high, low = (DATA.variance * math.exp(end) for end in (high, low))
    constant = 18.3 / 4 * (math.log1p(high) + 1 / (1 + high) - math.log1p(low) - 1 / (1 + low))
    extrapolated = steps[-1] * (2 * gaps[-1] - gaps[-2] / 2)
    yield Check("T x gap, nats, extrapolated to T -> infinity", extrapolated, constant, 2e-3 * constant)
    for (coarse, fine), count, ratio in zip(pairwise(gaps), steps, (2.0963, 2.0468, 2.0231), strict=False):
        yield Check(f"gap at T = {count} / gap at {2 * count}", coarse / fine, ratio, 1e-3)


def _linear_process(steps: int) -> Process:
    return make_process(
        VpProcess(
            num_train_timesteps=steps + 1,
            log_snr_min=-5.0,
            schedule=GeometricSchedule(),
            reverse_variance="beta_tilde",
        )
    )


def _gap(steps: int) -> float:
    """Sum of L_{t-1} over `steps` steps between the ends of the continuous bound, minus its diffusion term."""
    process = _linear_process(steps)
    kernel = likelihood.ReverseKernel(DATA.denoiser(process), clip_x0=False)
    t = torch.arange(2, steps + 2)
    x_0 = torch.full((steps, 1), math.sqrt(DATA.variance), dtype=torch.float64)
    corners = (kernel.diffusion_kl(x_0, t, torch.full_like(x_0, sign)).sum() / 2 for sign in (-1, 1))
    return float(sum(corners)) - _limit(process)


def _limit(process: Process) -> float:
    t, weights = nodes(process.t_min, process.t_max, 200)
    x_0 = torch.full((1, 1), math.sqrt(DATA.variance), dtype=torch.float64)
    return float((weights * corner_mean(DATA.denoiser(process), x_0, t)).sum())


def what_is_bounded(quick: bool) -> Iterator[Check]:
    """Claim 7: with lambda = g^2 the bound holds for the reverse SDE; the ODE with the same score may exceed it.

    The wrong score is a multiple of the exact one, so x_t stays Gaussian and its variance solves an ODE of its own.
    """
    process = make_process(VpProcess())
    tolerance = 1e-6 if quick else 1e-8
    right = [_kl(process, variance) for variance in _generated(process, 1.0, tolerance)]
    for name, kl in zip(("SDE", "ODE"), right, strict=True):
        yield Check(f"KL({name}) of the right score, nats", kl, 0.0, 1e-6)
    end = float(DATA.variance_at(process, torch.tensor([process.t_max], dtype=torch.float64)))
    for factor, expected_sde, expected_ode in ((0.9, 0.011570, 0.23115), (1.1, 0.008839, 0.49722)):
        sde, ode = (_kl(process, variance) for variance in _generated(process, factor, tolerance))
        weighted, lost = _weighted_error(process, factor), _lost(process, factor)
        bound = weighted + (end - 1 - math.log(end)) / 2
        what = f"{factor} x score: "
        yield Check(what + "1/2 integral of g^2 E||score error||^2 + KL_T, nats", bound, 0.057181, 1e-6)
        yield Check(what + "what the continuous bound loses / that integral", lost / weighted, 1.0, 1e-8)
        yield Check(what + "KL(SDE), nats", sde, expected_sde, 2e-5)
        yield Check(what + "KL(SDE) <= bound", float(sde <= bound), 1.0, 0.0)
        yield Check(what + "KL(ODE), nats", ode, expected_ode, 2e-4)
        yield Check(what + "KL(ODE) > bound", float(ode > bound), 1.0, 0.0)


def _generated(process: Process, factor: float, tolerance: float) -> list[float]:
    """Variances at t_min of reverse SDE and ODE, started from N(0, 1) at t_max; eps_theta is `factor` times exact."""
    denoiser, one = DATA.denoiser(process), torch.ones(1, 1, dtype=torch.float64)
    stepper = DormandPrince(torch.ones(1, 2, dtype=torch.float64), process.t_max, process.t_min, tolerance, tolerance)
    while (wanted := stepper.want()) is not None:
        _, t, variance = wanted
        per_x = factor * denoiser.epsilon(one, t)[0]  # eps_theta is linear
        on_x, on_epsilon = euler.reverse_sde_coefficients(process, t)
        sde = 2 * (on_x + on_epsilon * per_x) * variance[:, 0] - process.squared_diffusion(t)
        on_x, on_epsilon = euler.ode_coefficients(process, t)
        ode = 2 * (on_x + on_epsilon * per_x) * variance[:, 1]
        stepper.feed(torch.stack([sde, ode], dim=1))
    return [float(variance) for variance in stepper.y[0]]


def _kl(process: Process, variance: float) -> float:
    """KL(p_data || p_theta) at t_min, both Gaussian of mean 0."""
    ratio = float(DATA.variance_at(process, torch.tensor([process.t_min], dtype=torch.float64))) / variance
    return (ratio - 1 - math.log(ratio)) / 2


def _times(process: Process) -> tuple[Tensor, Tensor]:
    """Times and weights of an integral over t; the nodes are Gauss-Legendre's in log-SNR."""
    high, low = continuous_bound.log_snr_ends(process)
    log_snr, weights = nodes(low, high, 200)
    t = process.time(log_snr)
    return t, weights / -process.dlogsnr_dt(t)


def _weighted_error(process: Process, factor: float) -> float:
    """The integral over t of the `likelihood`-weighted squared error of eps, divided by t_max - t_min."""
    t, weights = _times(process)
    error = (factor - 1) ** 2 * process.sigma(t) ** 2 / DATA.variance_at(process, t)
    weighted = weighting.weights(LikelihoodWeighting(), Parameterization("epsilon"), process, t) * error
    return float((weights * weighted).sum()) / (process.t_max - process.t_min)


def _lost(process: Process, factor: float) -> float:
    """The continuous bound's diffusion term minus that of the exact score, nats."""
    t, weights = _times(process)
    right = DATA.denoiser(process)
    wrong = Denoiser(lambda x, time, label: factor * right.network(x, time, label), process, "epsilon")
    x_0 = torch.full((1, 1), math.sqrt(DATA.variance), dtype=torch.float64)
    return float((weights * (corner_mean(wrong, x_0, t) - corner_mean(right, x_0, t))).sum())


def ode_log_likelihood(quick: bool) -> Iterator[Check]:
    """Claim 8: the probability-flow log-likelihood of a mixture, from its true p_T and from N(0, I)."""
    data, process = MixtureData(), vp_from(1e-3)
    x = torch.linspace(-1.4, 1.4, 9 if quick else 33, dtype=torch.float64).reshape(-1, 1)
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    exact = data.log_prob(process, ends[:1], x)[:, 0]
    from_true, from_normal = dict[float, float](), dict[float, float]()
    for rtol in (1e-4, 1e-5, 1e-6):
        density = ode_likelihood.log_density(data.denoiser(process), x, rtol=rtol, atol=rtol / 10)
        true_prior = data.log_prob(process, ends[1:], density.latent)[:, 0]
        from_true[rtol] = float((true_prior + density.change - exact).abs().max())
        from_normal[rtol] = float((density.log_prob - exact).abs().max())
    yield Check("from p_T, max error in nats at rtol 1e-5", from_true[1e-5], 0.0, 2e-4)
    yield Check("from p_T, error at rtol 1e-6 / that at 1e-4", from_true[1e-6] / from_true[1e-4], 0.0, 0.1)
    for rtol in (1e-5, 1e-6):
        yield Check(f"from N(0, I), max error in nats at rtol {rtol:g}", from_normal[rtol], 3e-3, 1e-3)
    yield from _held_probe()
    uniform = ode_likelihood.dequantised_bits_per_dim(torch.tensor(12 * math.log(2)), 12)
    yield Check("bits/dim of the uniform density on [-1, 1]", float(uniform), 8.0, 1e-6)


def _held_probe() -> Iterator[Check]:
    """A two-dimensional case where one Rademacher probe does not give the exact trace, but the mean over all does."""
    data, process = MixtureData(), vp_from(1e-2)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    upright = data.denoiser(process)
    denoiser = Denoiser(lambda x, time, label: upright.network(x @ turn, time, label) @ turn.T, process, "epsilon")
    x = torch.tensor([[0.3, -0.5], [0.3, -0.5]], dtype=torch.float64)
    probe = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    coarse, fine = (
        ode_likelihood.log_density(denoiser, x, probe, rtol=rtol, atol=rtol, max_evaluations=1000)
        for rtol in (1e-4, 1e-6)
    )
    true_prior = data.log_prob(process, ends[1:], fine.latent @ turn).sum(1)
    error = (true_prior + fine.change).mean() - data.log_prob(process, ends[:1], x[:1] @ turn).sum()
    yield Check("2-D, one held probe a row: mean over all probes - exact, nats", float(error), 0.0, 1e-4)
    apart = float((fine.change[0] - fine.change[1]).abs())
    yield Check("2-D: the two probes' results differ by > 0.1 nats", float(apart > 0.1), 1.0, 0.0)
    moved = float((coarse.change - fine.change).abs().max())
    yield Check("2-D: rtol 1e-4 - rtol 1e-6, one held probe, nats", moved, 0.0, 1e-2)
