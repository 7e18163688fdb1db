"""The log-likelihood of the probability-flow ODE (Song et al. 2021, section 4.3), by the change of variables.

    dx / d log_snr = F(x) = a x + b eps_theta(x, t),    log p(x_0) = log N(x_1; 0, p^2 I) + integral of div F

from log_snr(t_min) to log_snr(t_max), over log-SNR because every process has the same smooth ODE there. With a vector
v, div F = a D + b div eps_theta is estimated as a D + b v^T (d eps_theta / dx) v (Hutchinson; Skilling 1989), unbiased
for v of mean 0 and covariance I. Each row keeps ONE v for the whole integration: drawn anew at every evaluation, F
would be no function of (x, log_snr), and no step size would be small enough. Few dimensions need no estimate: the
unit vectors' terms add up to the divergence.

The result is a density of continuous data, so images are dequantised first, and bits/dim carry the offset of 7 of
`diffusion.levels`: the metric is `nll_bpd`. It is the density of the ODE's samples, not a bound, and not comparable
with the two variational bounds of `likelihood.py` and `continuous_bound.py`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.likelihood.discrete import bits_per_dim
from diffusion.likelihood.quantization import DEQUANTISATION_OFFSET, require_dequantised
from diffusion.solvers.dormand_prince import DormandPrince
from diffusion.solvers.euler import log_snr_coefficients
from diffusion.tensors import expand_to


@dataclass(frozen=True)
class OdeDensity:
    """log p(x_0) in its two terms, float64 nats [B], and how it was found.

    Attributes:
        prior: log N(x_1; 0, prior_std^2 I).
        change: the integral of div F from log_snr(t_min) to log_snr(t_max).
        latent: x_1, float64, the shape of x_0.
        evaluations: network evaluations of each row, int64 [B].
    """

    prior: Tensor
    change: Tensor
    latent: Tensor
    evaluations: Tensor

    @property
    def log_prob(self) -> Tensor:
        """prior + change."""
        return self.prior + self.change


def log_density(
    denoiser: Denoiser,
    x_0: Tensor,
    probe: Tensor | None = None,
    *,
    label: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_evaluations: int = 10_000,
) -> OdeDensity:
    """The log density of each row of continuous data of any range, at the least noise of the process.

    Args:
        denoiser: the model; its network is differentiated, and shown the dtype of x_0.
        x_0: [B, ...].
        probe: v of each row, of the shape of x_0, Rademacher or standard normal; None for the exact divergence, at D
            backward passes an evaluation.
        label: int64 [B], or None.
        rtol: relative tolerance of the integration, on x and on the change of log density alike.
        atol: absolute tolerance.
        max_evaluations: of one row, before it is given up.

    Raises:
        ValueError: data that are not finite, a probe of another shape, a terminal SNR of zero, a tolerance of 0.
        ArithmeticError: a row that cannot go on: its network gives NaN, or its step is too small for float64.
    """
    start, end = log_snr_ends(denoiser.process)
    if not x_0.isfinite().all():
        raise ValueError("data hold NaN or infinity; allowed: numbers")
    if probe is not None and probe.shape != x_0.shape:
        raise ValueError(f"probe of shape {tuple(probe.shape)}; allowed: that of the data, {tuple(x_0.shape)}")
    with torch.inference_mode(mode=False), torch.no_grad():
        # A clone of what was made in inference mode can take part in a backward pass.
        flow = AugmentedFlow(denoiser, x_0.clone(), _cloned(probe), _cloned(label))
        stepper = DormandPrince(flow.start(), start, end, rtol, atol, max_evaluations)
        while (wanted := stepper.want()) is not None:
            stepper.feed(flow.slope(*wanted))
        latent, change = flow.parts(stepper.y)
        prior = standard_normal_log_prob(latent, denoiser.process.prior_std)
        return OdeDensity(prior, change, latent, stepper.evaluations)


def dequantised_nll(
    denoiser: Denoiser,
    x: Tensor,
    probe: Tensor | None = None,
    *,
    label: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """-log p(x) of dequantised images [B, C, H, W], nats float64 [B], and each one's evaluations.

    Arguments and errors are those of `log_density`; `dequantised_bits_per_dim` converts.

    Raises:
        ValueError: also for data that still sit on the 256 levels, or that are not scaled to [-1, 1].
    """
    require_dequantised(x)
    density = log_density(denoiser, x, probe, label=label, rtol=rtol, atol=atol)
    return -density.log_prob, density.evaluations


def dequantised_bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """-log p(x) of data dequantised to [-1, 1] as bits per dimension of the 8-bit data: nats / (D ln 2) + 7."""
    return bits_per_dim(nats, dimensions) + DEQUANTISATION_OFFSET


def standard_normal_log_prob(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2 I) of each row, float64 [B]."""
    log_p = -((x.to(torch.float64) / std) ** 2) / 2 - math.log(2 * math.pi * std**2) / 2
    return log_p.flatten(1).sum(1)


def divergence(function: Callable[[Tensor], Tensor], x: Tensor, probes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """f(x), and the sum over the probes v of v^T (df / dx) v of each row, float64 [B]; f acts on rows one by one."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for probe in probes:
            (pulled,) = torch.autograd.grad(value, x, probe.to(value), retain_graph=True)
            total = total + (pulled.to(torch.float64) * probe).flatten(1).sum(1)
    return value.detach(), total


class AugmentedFlow:
    """x and the change of log density so far, side by side in one row [D + 1], float64."""

    def __init__(self, denoiser: Denoiser, x_0: Tensor, probe: Tensor | None, label: Tensor | None) -> None:
        self.denoiser, self.x_0, self.label = denoiser, x_0, label
        self.probe = None if probe is None else probe.to(x_0)

    def start(self) -> Tensor:
        """x_0, and no change."""
        flat = self.x_0.flatten(1).to(torch.float64)
        return torch.cat([flat, flat.new_zeros(len(flat), 1)], dim=1)

    def parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x in its own shape, and the change [B]."""
        return y[:, :-1].reshape(-1, *self.x_0.shape[1:]), y[:, -1]

    def slope(self, index: Tensor, log_snr: Tensor, y: Tensor) -> Tensor:
        """F and div F for the rows `index`, each at its own log-SNR."""
        process, (x, _) = self.denoiser.process, self.parts(y)
        t, label = process.time(log_snr), None if self.label is None else self.label[index]
        epsilon, div_epsilon = divergence(
            lambda x_t: self.denoiser.epsilon(x_t, t, label), x.to(self.x_0.dtype), self._probes(index, x)
        )
        on_x, on_epsilon = log_snr_coefficients(process, log_snr)
        flow = expand_to(on_x, x) * x + expand_to(on_epsilon, x) * epsilon
        dimensions = y.shape[1] - 1
        change = on_x.to(y) * dimensions + on_epsilon.to(y) * div_epsilon
        return torch.cat([flow.flatten(1), change[:, None]], dim=1)

    def _probes(self, index: Tensor, x: Tensor) -> Iterable[Tensor]:
        if self.probe is not None:
            return (self.probe[index],)
        units = torch.eye(x[0].numel(), dtype=self.x_0.dtype, device=x.device)
        return (unit.reshape(1, *x.shape[1:]).expand_as(x) for unit in units)


def _cloned(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.clone()
