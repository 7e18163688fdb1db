"""Claims 10 and 13: one error under all parameterizations, and the variance of how t is drawn."""
# torch.from_numpy has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffusion import prediction, time_sampling, weighting
from diffusion.config import EdmWeighting, MinSnrWeighting, StratifiedTime, UniformTime
from diffusion.prediction import Parameterization, Prediction
from diffusion.rng import Stream, counter_generator
from diffusion.verify.claims.check import CHAIN_SCHEDULES, DATA, Check, ddpm, max_relative_error


def error_identities(quick: bool) -> Iterator[Check]:  # noqa: ARG001
    """Claim 10: the errors of eps, x_0, v and F are known multiples of one another; min-SNR has the factor of each."""
    for kind in CHAIN_SCHEDULES:
        process = ddpm(kind, 1000)
        t = torch.arange(1, 1001)[process.log_snr(torch.arange(1, 1001)).abs() < 8]
        generator = torch.Generator().manual_seed(0)
        x_0, eps, guess = (torch.randn(len(t), dtype=torch.float64, generator=generator) for _ in range(3))
        alpha, sigma, snr = process.alpha(t), process.sigma(t), torch.exp(process.log_snr(t))
        estimate = prediction.epsilon_to_x0(guess, alpha * x_0 + sigma * eps, alpha, sigma)
        x0_error, epsilon_error = (x_0 - estimate) ** 2, (eps - guess) ** 2
        v_error = (
            prediction.velocity(x_0, eps, alpha, sigma) - prediction.velocity(estimate, guess, alpha, sigma)
        ) ** 2
        yield Check(
            f"{kind}: SNR ||x_0 error||^2 = ||eps error||^2",
            max_relative_error(snr * x0_error, epsilon_error),
            0.0,
            1e-12,
        )
        yield Check(
            f"{kind}: ||v error||^2 = (SNR + 1) ||x_0 error||^2",
            max_relative_error(v_error, (snr + 1) * x0_error),
            0.0,
            1e-12,
        )
        clipped = snr.clamp(max=5.0)
        factors: dict[Prediction, Tensor] = {"x0": clipped, "epsilon": clipped / snr, "v": clipped / (snr + 1)}
        for kind_of_output, expected in factors.items():
            measured = weighting.weights(MinSnrWeighting(gamma=5.0), Parameterization(kind_of_output), process, t)
            yield Check(
                f"{kind}: min-SNR weights for {kind_of_output}", max_relative_error(measured, expected), 0.0, 1e-12
            )
        unit = weighting.weights(EdmWeighting(), Parameterization("edm", 0.3), process, t)
        yield Check(f"{kind}: EDM's lambda c_out^2", max_relative_error(unit, torch.ones_like(unit)), 0.0, 1e-12)


def stratified_steps(quick: bool) -> Iterator[Check]:
    """Claim 13: how t is drawn determines the spread of the bound's estimate; 8 ranks x 16 rows, even log-SNR."""
    batches, span = (2000 if quick else 20_000), 18.3
    generator = counter_generator(0, Stream.TIMESTEPS, 0)

    def spread(config: UniformTime | StratifiedTime, ranks: int) -> float:
        draws = [time_sampling.draw_time_fractions(config, generator, 128 // ranks) for _ in range(batches)]
        weighted = DATA.variance * torch.exp(13.3 - span * torch.from_numpy(np.stack(draws)))
        return float((0.5 * span * weighted / (weighted + 1)).mean(1).std())

    error = 4 / math.sqrt(2 * batches)  # four standard errors of a standard deviation, relative
    for what, value, expected, slack in (
        ("uniform", spread(UniformTime(), 1), 0.339, 0.01),
        ("stratified over the global batch", spread(StratifiedTime(), 1), 0.0032, 0.02),
        ("every rank drawing the same t", spread(UniformTime(), 8), 0.95, 0.02),
    ):
        yield Check(f"std of the VLB estimate, nats: {what}", value, expected, (error + slack) * expected)
