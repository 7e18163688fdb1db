"""The log-likelihood of the probability-flow ODE (Song et al. 2021, section 4.3), by the change of variables.

    dx / d log_snr = F(x) = a x + b eps_theta(x, t),    log p(x_0) = log N(x_1; 0, p^2 I) + integral of div F

The integral runs from log_snr(t_min) to log_snr(t_max), over log-SNR because every process has the same smooth ODE
there. With a random vector v, div F = a D + b div eps_theta is estimated by a D + b v^T (d eps_theta / dx) v
(Hutchinson; Skilling 1989), unbiased for v of mean 0 and covariance I. Each row keeps ONE v for the whole integration:
drawn anew at every evaluation, F would not be a function of (x, log_snr), and no step size would be small enough. In
few dimensions no estimate is needed: summed over the unit vectors, v^T (d eps_theta / dx) v is the exact divergence.

The result is a density of continuous data, so images are dequantised first, and bits/dim carry the offset of 7 of
`quantization.py`; the metric is `nll_bpd`. It is the density of the ODE's samples, not a bound, and not comparable
with the two variational bounds of `discrete.py` and `continuous.py`.
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
    """log p(x_0) in its two terms, float64 nats [B], and the integration's result and cost.

    Attributes:
        prior: log N(x_1; 0, prior_std^2 I).
        change: the integral of div F from log_snr(t_min) to log_snr(t_max).
        latent: x_1, the end of the path at the most noise, float64, the shape of x_0.
        evaluations: network evaluations of each row, int64 [B].
    """

    prior: Tensor
    change: Tensor
    latent: Tensor
    evaluations: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log p(x_0) = prior + change, float64 nats [B]."""
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
    """The log density of each row of continuous data under the probability-flow ODE.

    The data stand for x at t_min, the least noise of the process.

    Args:
        denoiser: the model; its network is differentiated, and receives the dtype of x_0.
        x_0: data of any range [B, ...].
        probe: v of each row, the shape of x_0, Rademacher or standard normal; None for the exact divergence, at D
            backward passes per evaluation.
        label: int64 [B], or None.
        rtol: relative tolerance of the integration, for x and for the change of log density.
        atol: absolute tolerance of both, in the units of x and in nats.
        max_evaluations: evaluations of one row after which it is given up.

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
    """-log p(x) of dequantised images [B, C, H, W], float64 nats [B], and each row's network evaluations, int64 [B].

    Arguments and errors are those of `log_density`; `dequantised_bits_per_dim` converts the result.

    Raises:
        ValueError: also for data that are still on the 256 levels, or that are not scaled to [-1, 1].
    """
    require_dequantised(x)
    density = log_density(denoiser, x, probe, label=label, rtol=rtol, atol=atol)
    return -density.log_prob, density.evaluations


def dequantised_bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Convert -log p(x) of data dequantised to [-1, 1] to bits per dimension of the 8-bit data: nats / (D ln 2) + 7."""
    return bits_per_dim(nats, dimensions) + DEQUANTISATION_OFFSET


def standard_normal_log_prob(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2 I) of each row, nats, float64 [B]."""
    log_p = -((x.to(torch.float64) / std) ** 2) / 2 - math.log(2 * math.pi * std**2) / 2
    return log_p.flatten(1).sum(1)


def divergence(function: Callable[[Tensor], Tensor], x: Tensor, probes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """A function's value, and the sum over probes v of v^T (df / dx) v for each row.

    Args:
        function: f, maps x [B, ...] to the same shape, row by row.
        x: [B, ...].
        probes: vectors v, each the shape of x. One random v gives Hutchinson's estimate, all unit vectors the
            divergence.

    Returns:
        f(x), and the sums, float64 [B]; both without gradient.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for probe in probes:
            (pulled,) = torch.autograd.grad(value, x, probe.to(value), retain_graph=True)
            total = total + (pulled.to(torch.float64) * probe).flatten(1).sum(1)
    return value.detach(), total


class AugmentedFlow:
    """The ODE of x together with the change of log density so far, as rows of D + 1 float64 numbers.

    Args:
        denoiser: the model.
        x_0: data [B, ...]; their dtype is the network's.
        probe: v of each row, the shape of x_0, or None for the exact divergence.
        label: int64 [B], or None.
    """

    def __init__(self, denoiser: Denoiser, x_0: Tensor, probe: Tensor | None, label: Tensor | None) -> None:
        self.denoiser, self.x_0, self.label = denoiser, x_0, label
        self.probe = None if probe is None else probe.to(x_0)

    def start(self) -> Tensor:
        """The state at t_min: x_0 and a change of 0, float64 [B, D + 1]."""
        flat = self.x_0.flatten(1).to(torch.float64)
        return torch.cat([flat, flat.new_zeros(len(flat), 1)], dim=1)

    def parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x in its own shape [B, ...] and the change of log density [B], from the state [B, D + 1]."""
        return y[:, :-1].reshape(-1, *self.x_0.shape[1:]), y[:, -1]

    def slope(self, index: Tensor, log_snr: Tensor, y: Tensor) -> Tensor:
        """The derivative in log-SNR of the state: F and div F, float64 [R, D + 1].

        Args:
            index: numbers of the rows, int64 [R].
            log_snr: of each row, float64 [R].
            y: their states [R, D + 1].
        """
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
