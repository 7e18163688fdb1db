"""Claims 11 and 14: samplers that must agree exactly, and the Langevin corrector."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion import config as configs, solvers
from diffusion.config import ClassifierFree, DdpmProcess, SolverConfig, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.gaussian import GaussianData, MixtureData
from diffusion.process.sde import make_process
from diffusion.solvers import predictor_corrector
from diffusion.tensors import to_floats
from diffusion.verify.claims import marginals
from diffusion.verify.claims.check import Check
from diffusion.verify.claims.marginals import CONTINUOUS
from diffusion.verify.claims.orders import FixedNoise


@dataclass(frozen=True)
class DoubleNoise:
    """Another noise, converted to float64.

    Attributes:
        noise: what is converted.
    """

    noise: solvers.Noise

    def draw(self, index: int) -> Tensor:
        """The draw of the given index, float64."""
        return self.noise.draw(index).double()


NOISE = DoubleNoise(solvers.ImageNoise(0, range(8), (1, 1, 1)))


def equal_samplers(quick: bool) -> Iterator[Check]:
    """Claim 11: DDIM's two ends, solvers that share a step, guidance of scale 0 and 1, sub-VP and VP, ODE and SDE."""
    yield from _same_chains(10 if quick else 100)
    yield from _same_steps()
    yield from _guidance_at_its_ends()
    yield from marginals.same_marginals(quick)


def _difference(denoisers: list[Denoiser], samplers: list[SolverConfig]) -> float:
    """The largest absolute difference between the samples of two solvers on the same noise."""
    first, second = (
        solvers.solve(denoiser, NOISE, config.model_copy(update={"clip_x0": False}))
        for denoiser, config in zip(denoisers, samplers, strict=True)
    )
    return float((first - second).abs().max())


def _same_chains(steps: int) -> Iterator[Check]:
    """Ancestral sampling with beta-tilde is DDIM at eta = 1; a learned variance spans beta-tilde to beta."""
    fixed = {kind: _mixture_chain(kind) for kind in ("beta", "beta_tilde")}
    ancestral = configs.Ancestral(num_steps=steps)
    difference = _difference([fixed["beta_tilde"]] * 2, [ancestral, configs.Ddim(num_steps=steps, eta=1.0)])
    yield Check(f"ancestral (beta-tilde) - DDIM (eta = 1) over {steps} steps", difference, 0.0, 1e-12)
    for kind, interpolation in (("beta_tilde", -1.0), ("beta", 1.0)):
        learned = _mixture_chain("learned", interpolation)
        difference = _difference([learned, fixed[kind]], [ancestral] * 2)
        yield Check(
            f"ancestral (learned, interpolation {interpolation:g}) - ancestral ({kind})", difference, 0.0, 1e-12
        )


def _mixture_chain(reverse_variance: str, interpolation: float | None = None) -> Denoiser:
    """The exact denoiser of a mixture over DDPM's chain, with a constant interpolation of the variance if given."""
    config = DdpmProcess.model_validate({"num_train_timesteps": 100, "reverse_variance": reverse_variance})
    exact = MixtureData().denoiser(make_process(config))
    if interpolation is None:
        return exact

    def network(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        epsilon = exact.network(x, time, label)
        return torch.cat([epsilon, torch.full_like(epsilon, interpolation)], dim=1)

    return Denoiser(network, exact.process, "epsilon")


def _same_steps() -> Iterator[Check]:
    """DDIM at eta = 0 is DPM-Solver-1 and Euler in edm_sigma; SDE-2M begins as ancestral; Heun is EDM without churn."""
    denoiser = MixtureData().denoiser(make_process(VpProcess()))
    same: tuple[tuple[str, SolverConfig, SolverConfig], ...] = (
        ("DDIM (eta = 0) - DPM-Solver-1, one step", configs.Ddim(num_steps=1), configs.Dpmpp2M(num_steps=1)),
        (
            "DDIM (eta = 1) - SDE-DPM-Solver++, one step",
            configs.Ddim(num_steps=1, eta=1),
            configs.Dpmpp2MSde(num_steps=1),
        ),
        (
            "Heun - EDM (s_churn = 0) over 10 steps",
            configs.Heun(num_steps=10),
            configs.EdmStochastic(num_steps=10, s_churn=0),
        ),
    )
    for what, first, second in same:
        difference = _difference([denoiser] * 2, [c.model_copy(update={"denoise": False}) for c in (first, second)])
        yield Check(what, difference, 0.0, 1e-12)
    for kind, config in CONTINUOUS.items():
        yield Check(f"{kind}: DDIM (eta = 0) - Euler in edm_sigma over 20 steps", _ddim_from_euler(config), 0.0, 1e-12)


def _ddim_from_euler(config: configs.ProcessConfig) -> float:
    """DDIM at eta = 0 minus Euler's y_s = y_t + (s - t) eps, y = x / alpha; largest difference over prior_std."""
    data, process = MixtureData(), make_process(config)
    denoiser, start = data.denoiser(process), torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    ddim = configs.Ddim(num_steps=20, clip_x0=False, denoise=False, spacing="log_snr")
    samples = solvers.solve(denoiser, FixedNoise(start), ddim)
    low, high = to_floats(process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64)))
    times = process.time(torch.linspace(low, high, 21, dtype=torch.float64))
    edm_sigma, alpha = torch.exp(-process.log_snr(times) / 2), process.alpha(times)
    y = process.prior_std * start / alpha[0]
    for i, j in pairwise(range(21)):
        epsilon = denoiser.epsilon(alpha[i] * y, times[i].expand(len(y)))
        y = y + (edm_sigma[j] - edm_sigma[i]) * epsilon
    return float((samples - alpha[-1] * y).abs().max()) / process.prior_std


def _guidance_at_its_ends() -> Iterator[Check]:
    """Guidance of scale 1 is the conditional model, of scale 0 the unconditional one."""
    process = make_process(VpProcess())
    without, with_label = (GaussianData(mean, 0.25).denoiser(process) for mean in (0.0, 0.5))

    def network(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None, "the solver gives labels"
        strong, weak = with_label.network(x, time, None), without.network(x, time, None)
        return torch.where((label == 0).reshape(-1, 1, 1, 1), strong, weak)

    both = Denoiser(network, process, "epsilon", null_label=1)
    config, label = configs.Ddim(num_steps=10, clip_x0=False), torch.zeros(8, dtype=torch.int64)
    for scale, alone in ((0.0, without), (1.0, with_label)):
        samples = solvers.solve(both, NOISE, config, label, ClassifierFree(scale=scale))
        difference = float((samples - solvers.solve(alone, NOISE, config)).abs().max())
        yield Check(f"guidance of scale {scale:g} - the model it is", difference, 0.0, 1e-12)


def langevin_corrector(quick: bool) -> Iterator[Check]:  # noqa: ARG001 - it is quick
    """Claim 14: the corrector's stationary variance on a Gaussian is v / (1 - tau / (2 v)); each row has its own tau.

    The step is x' = A x + B z, so its stationary variance is B^2 / (1 - A^2).
    """
    for variance in (0.25, 1.0, 4.0):
        for share in (0.01, 0.3, 1.5):
            tau = share * variance
            x, z = torch.eye(2, dtype=torch.float64)
            on_x, on_z = predictor_corrector.langevin_step(x, -x / variance, z, torch.full_like(x, tau))
            stationary = float(on_z**2 / (1 - on_x**2))
            expected = variance / (1 - tau / (2 * variance))
            what = f"stationary variance, v = {variance:g}, tau = {tau:g}"
            yield Check(what, stationary / expected, 1.0, 1e-12)
    score, z = torch.tensor([[3.0, 0.0], [600.0, 800.0]], dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    alone = predictor_corrector.step_sizes(score[:1], z[:1], 0.16)
    together = predictor_corrector.step_sizes(score, z, 0.16)
    yield Check("tau of |score| = 3, |z| = sqrt(2), r = 0.16", float(alone), 2 * 0.16**2 * 2 / 9, 1e-15)
    yield Check("its change beside a row of |score| = 1000", float(together[0] - alone[0]), 0.0, 0.0)
    ratio = math.log10(float(together[0] / together[1]))
    yield Check("log10 of the two rows' ratio of tau", ratio, 2 * math.log10(1000 / 3), 1e-12)
