"""What the theory states and this code is held to: each statement measured in float64 on data with exact answers.

They are numbered as in docs/theory.md, which says which ones wait for the code that they are about. A check compares
one measured number with the expected one; `python -m diffusion.verify` prints them, and the tests run the same
functions.
"""
# torch.from_numpy has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion import chain, likelihood, schedule, solvers, time_sampling, weighting
from diffusion.config import (
    Ancestral,
    CosineSchedule,
    Ddim,
    Dpmpp2M,
    LinearSchedule,
    MinSnrWeighting,
    ProcessConfig,
    StratifiedTime,
    UniformTime,
)
from diffusion.frechet import Moments, frechet_distance
from diffusion.gaussian import GaussianData, MixtureData, vp_schedule
from diffusion.keyed import Stream, keyed_generator
from diffusion.prediction import Prediction, epsilon_to_x0, velocity

DATA = GaussianData(0.0, 0.25)
KINDS = {"linear": LinearSchedule(), "cosine": CosineSchedule()}


@dataclass(frozen=True)
class Check:
    """One measured number.

    Attributes:
        what: in words.
        measured: by this code.
        expected: by the theory.
        tolerance: largest difference that passes.
    """

    what: str
    measured: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is as expected; a number that is none is not."""
        return abs(self.measured - self.expected) <= self.tolerance


@dataclass(frozen=True)
class Statement:
    """A numbered statement and the function that measures it; `quick` asks for less work."""

    number: int
    text: str
    checks: Callable[[bool], Iterator[Check]]


def _schedule(kind: str, steps: int) -> schedule.Schedule:
    return schedule.Schedule.from_config(ProcessConfig(num_train_timesteps=steps, schedule=KINDS[kind]))


def _prior(table: schedule.Schedule) -> float:
    """L_T of the data's root mean square, nats: it is quadratic in x_0."""
    return float(likelihood.prior_kl(table, torch.full((1, 1), math.sqrt(DATA.variance), dtype=torch.float64)))


def _mismatch(table: schedule.Schedule) -> float:
    """KL(q(x_T) || N(0, I)), nats."""
    marginal = float(DATA.variance_at(table, torch.tensor([table.num_steps])))
    return 0.5 * (marginal - 1 - math.log(marginal))


def true_reverse_chain(quick: bool) -> Iterator[Check]:  # noqa: ARG001 - it is quick
    """Statement 1: with the true mu and Sigma, VLB - H(x) = KL(q(x_T) || N(0, I)) on Gaussian data."""
    for kind in KINDS:
        table = _schedule(kind, 1000)
        t = torch.arange(2, 1001)
        q = chain.posterior(table, t - 1, t)
        spread = q.coef_x_0**2 * DATA.x0_variance(table, t)  # of the posterior mean, given x_t
        true_variance = q.variance + spread
        diffusion = 0.5 * torch.log(true_variance / q.variance).sum()  # the other terms cancel
        reconstruction = 0.5 * torch.log(2 * math.pi * math.e * DATA.x0_variance(table, torch.tensor([1])))
        gap = _prior(table) + float(diffusion) + float(reconstruction) - DATA.entropy - _mismatch(table)
        yield Check(f"{kind}-1000: VLB - H(x) - KL of the prior, nats", gap, 0.0, 1e-8)


def fixed_reverse_variance(quick: bool) -> Iterator[Check]:
    """Statement 2: Sigma = beta costs c / T bits; Sigma = beta-tilde a constant, with beta-tilde_1 := beta-tilde_2."""
    steps = 2000 if quick else 4000
    for kind, constant in (("linear", 1.58), ("cosine", 0.88)):
        gap = steps * _gap(_schedule(kind, steps), "beta")
        yield Check(f"{kind}: T x gap of Sigma = beta, bits, T = {steps}", gap, constant, 0.02 * constant)
    yield Check(
        "linear: gap of Sigma = beta-tilde at T = 4000, bits",
        _gap(_schedule("linear", 4000), "beta_tilde"),
        0.70,
        0.005,
    )


def _gap(table: schedule.Schedule, variance: chain.ReverseVariance) -> float:
    """VLB - H(x) - KL(q(x_T) || N(0, I)), bits per dimension, with a Gaussian decoder of variance Sigma_1."""
    kernel = likelihood.ReverseKernel(DATA.denoiser(table), variance, clip_x0=False)
    t = torch.arange(2, table.num_steps + 1)
    terms = torch.zeros(len(t), dtype=torch.float64)
    for x_sign in (-1, 1):  # L_{t-1} is quadratic in (x_0, eps): its sign corners average to its mean
        for eps_sign in (-1, 1):
            x_0 = torch.full((len(t), 1), x_sign * math.sqrt(DATA.variance), dtype=torch.float64)
            terms += kernel.diffusion_kl(x_0, t, torch.full_like(x_0, eps_sign)) / 4
    first, zero = torch.tensor([1]), torch.tensor([0])
    decoder = float(chain.reverse_variance(table, zero, first, variance))
    reconstruction = 0.5 * (math.log(2 * math.pi * decoder) + float(DATA.x0_variance(table, first)) / decoder)
    return (_prior(table) + float(terms.sum()) + reconstruction - DATA.entropy - _mismatch(table)) / math.log(2)


def published_end(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Statement 3: DDPM's linear-1000 ends where it is published to end."""
    table = _schedule("linear", 1000)
    yield Check("linear-1000: alphas_cumprod_T x 1e5", float(table.alpha[-1] ** 2) * 1e5, 4.0358, 5e-5)
    x_0 = torch.full((1, 12), math.sqrt(1 / 3), dtype=torch.float64)
    bits = float(likelihood.bits_per_dim(likelihood.prior_kl(table, x_0), 12))
    yield Check("linear-1000: L_T at E[x^2] = 1/3, bits/dim x 1e6", bits * 1e6, 9.7, 0.05)


def continuous_limit(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Statement 4: alphas_cumprod -> exp(-integral of beta), as 1 / N; equation (12) with beta(i / N) = N beta_i."""
    for grid, constant in (("linspace", 0.81), ("beta(i / N) = N beta_i", 1.93)):
        errors = [_discretisation_error(grid, steps) for steps in (100, 1000, 10_000)]
        yield Check(f"{grid}: N x max error at N = 10000", errors[2] * 10_000, constant, 0.01 * constant)
        for (coarse, fine), steps in zip(pairwise(errors), (100, 1000), strict=True):
            yield Check(f"{grid}: error at {steps} / error at {10 * steps}", coarse / fine, 10.0, 0.5)


def _discretisation_error(grid: str, steps: int) -> float:
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    table = _schedule("linear", steps) if grid == "linspace" else schedule.Schedule((0.1 + 19.9 * time) / steps)
    limit = torch.exp(-(0.1 * time + 19.9 * time**2 / 2))
    return float((table.alpha[1:] ** 2 - limit).abs().max())


def solver_order(quick: bool) -> Iterator[Check]:
    """Statement 9, the solvers there are: errors at t = 0.05 from t = 1 against the ODE's exact solution."""
    steps = (40, 80, 160) if quick else (40, 80, 160, 320)
    for config, order in ((Ddim(clip_x0=False), 1), (Dpmpp2M(clip_x0=False), 2)):
        errors = torch.tensor([_ode_error(config, n) for n in steps], dtype=torch.float64)
        log_n = torch.log(torch.tensor(steps, dtype=torch.float64))
        centred = log_n - log_n.mean()
        slope = float((centred * torch.log(errors)).sum() / centred.square().sum())
        yield Check(f"{config.kind}: order of convergence", -slope, order, 0.1)


def _ode_error(config: Ddim | Dpmpp2M, steps: int) -> float:
    data, table = MixtureData(), vp_schedule(steps)
    denoiser = data.denoiser(table)
    start = torch.linspace(-2.5, 2.5, 33, dtype=torch.float64).reshape(-1, 1)
    noise = solvers.ImageNoise(0, range(33), (1, 1, 1))
    solver = solvers.make_solver(config.model_copy(update={"num_steps": table.num_steps}), table, noise)
    solver.x = start
    while (query := solver.want()) is not None and int(query.t[0]) > 1:
        solver.feed(denoiser.epsilon(query.x, query.t))
    return float((solver.x - data.transport(table, start, table.num_steps, 1)).abs().max())


def error_identities(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Statement 10: one error seen as that of epsilon, x_0 and v; min-SNR's factor for each."""
    for kind in KINDS:
        table = _schedule(kind, 1000)
        t = torch.arange(1, 1001)[table.log_snr[1:].abs() < 8]
        generator = torch.Generator().manual_seed(0)
        x_0, eps, guess = (torch.randn(len(t), dtype=torch.float64, generator=generator) for _ in range(3))
        alpha, sigma, snr = table.alpha[t], table.sigma[t], torch.exp(table.log_snr[t])
        estimate = epsilon_to_x0(guess, alpha * x_0 + sigma * eps, alpha, sigma)
        x0_error, epsilon_error = (x_0 - estimate) ** 2, (eps - guess) ** 2
        v_error = (velocity(x_0, eps, alpha, sigma) - velocity(estimate, guess, alpha, sigma)) ** 2
        yield Check(f"{kind}: SNR ||x_0 error||^2 = ||eps error||^2", _worst(snr * x0_error, epsilon_error), 0.0, 1e-12)
        yield Check(
            f"{kind}: ||v error||^2 = (SNR + 1) ||x_0 error||^2", _worst(v_error, (snr + 1) * x0_error), 0.0, 1e-12
        )
        clipped = snr.clamp(max=5.0)
        factors: dict[Prediction, Tensor] = {"x0": clipped, "epsilon": clipped / snr, "v": clipped / (snr + 1)}
        for prediction, expected in factors.items():
            found = weighting.weights(MinSnrWeighting(gamma=5.0), table, prediction)[t]
            yield Check(f"{kind}: min-SNR weights for {prediction}", _worst(found, expected), 0.0, 1e-12)


def _worst(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference."""
    return float(((found - expected) / expected).abs().max())


def equal_samplers(quick: bool) -> Iterator[Check]:
    """Statement 11: DDIM at eta = 1 is ancestral with beta-tilde; at eta = 0 its step is DPM-Solver-1's."""
    table = _schedule("cosine", 100)
    denoiser, steps = MixtureData().denoiser(table), 10 if quick else 100
    noise = solvers.ImageNoise(0, range(8), (1, 1, 1))
    results: list[Tensor] = []
    for config in (Ancestral(num_steps=steps, clip_x0=False), Ddim(num_steps=steps, eta=1.0, clip_x0=False)):
        solver = solvers.make_solver(config, table, noise, "beta_tilde")
        solver.x = solver.x.double()
        results.append(solvers.solve(denoiser, solver))
    difference = float((results[0] - results[1]).abs().max())
    yield Check(f"ancestral (beta-tilde) - DDIM (eta = 1) over {steps} steps", difference, 0.0, 1e-12)
    steps_: list[Tensor] = []
    for config in (Ddim(num_steps=2, clip_x0=False), Dpmpp2M(num_steps=2, clip_x0=False)):
        solver = solvers.make_solver(config, table, noise)
        solver.x = solver.x.double()
        solver.feed(denoiser.epsilon(solver.x, torch.full((8,), 100)))
        steps_.append(solver.x)
    yield Check("DDIM (eta = 0) - DPM-Solver-1, one step", float((steps_[0] - steps_[1]).abs().max()), 0.0, 1e-12)


def decoder_mass(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Statement 12: the discretised decoder's 256 bins, the end ones open, sum to one."""
    levels = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1
    for mean in (-3.0, -0.2, 0.999, 40.0):
        for std in (1e-3, 0.1, 10.0):
            mass = likelihood.discretised_gaussian_log_prob(levels, torch.tensor(mean), torch.tensor(std)).exp().sum()
            yield Check(f"sum of 256 bins, mean {mean:g}, std {std:g}", float(mass), 1.0, 1e-12)


def stratified_steps(quick: bool) -> Iterator[Check]:
    """Statement 13: how t is drawn decides the spread of the bound's estimate; 8 ranks x 16, log-SNR linear in t."""
    batches, resolution, span = (2000 if quick else 20_000), 10**6, 18.3
    generator = keyed_generator(0, Stream.TIMESTEPS, 0)

    def spread(config: UniformTime | StratifiedTime, ranks: int) -> float:
        rows = 128 // ranks
        t = torch.stack(
            [
                torch.from_numpy(time_sampling.draw_timesteps(config, generator, rows, resolution))
                for _ in range(batches)
            ]
        )
        log_snr = 13.3 - span * (t.double() - 0.5) / resolution
        weighted = DATA.variance * torch.exp(log_snr)
        return float((0.5 * span * weighted / (weighted + 1)).mean(1).std())

    error = 4 / math.sqrt(2 * batches)  # four standard errors of a standard deviation, relative
    for what, value, expected, slack in (
        ("uniform", spread(UniformTime(), 1), 0.339, 0.01),
        ("stratified over the global batch", spread(StratifiedTime(), 1), 0.0032, 0.02),
        ("every rank drawing the same t", spread(UniformTime(), 8), 0.95, 0.02),
    ):
        yield Check(f"std of the VLB estimate, nats: {what}", value, expected, (error + slack) * expected)


def frechet_moments(quick: bool) -> Iterator[Check]:
    """Statement 15: the Frechet distance's bias falls as 1 / N; shards add up to one pass."""
    generator = torch.Generator().manual_seed(5)
    reference = Moments(10**9, torch.zeros(4, dtype=torch.float64), (10**9 - 1) * torch.eye(4, dtype=torch.float64))

    def bias(count: int) -> float:
        draws = 400 if quick else 2000
        samples = (torch.randn(count, 4, dtype=torch.float64, generator=generator) for _ in range(draws))
        return sum(frechet_distance(Moments.of(sample), reference) for sample in samples) / draws

    yield Check("bias x N at N = 50 over that at N = 200", bias(50) * 50 / (bias(200) * 200), 1.0, 0.1)
    a, b = (torch.randn(400, 8, dtype=torch.float64, generator=generator) * (1 + i) + i for i in range(2))
    one, first, second = Moments.of(b), Moments.of(a[:151]), Moments.of(a[151:])
    whole = frechet_distance(Moments.of(a), one)
    yield Check("distance from shards over that of one pass", frechet_distance(second + first, one) / whole, 1.0, 1e-12)


STATEMENTS = (
    Statement(1, "with the true reverse chain, the bound is the entropy plus the prior's mismatch", true_reverse_chain),
    Statement(2, "Sigma = beta costs c / T, Sigma = beta-tilde a constant", fixed_reverse_variance),
    Statement(3, "linear-1000 ends where it is published to end", published_end),
    Statement(4, "DDPM's chain goes to the VP SDE as 1 / N", continuous_limit),
    Statement(9, "solvers have their order", solver_order),
    Statement(10, "epsilon, x_0 and v have one error; min-SNR its factor for each", error_identities),
    Statement(11, "samplers that are the same are the same", equal_samplers),
    Statement(12, "the discretised decoder is a distribution", decoder_mass),
    Statement(13, "stratified t, over the global batch", stratified_steps),
    Statement(15, "Frechet distance: bias and shards", frechet_moments),
)
