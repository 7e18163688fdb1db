"""A learned noise schedule: log-SNR as a monotone network of t (Kingma et al. 2021, "Variational diffusion models").

The continuous bound depends on a schedule only through its two ends, which stay as configured. What is learned between
them is where the integrand is evaluated when t is drawn uniformly, and so the variance of the bound's estimate. The
schedule therefore minimises the second moment of the loss, E[loss^2], while the network minimises E[loss]; both
gradients come from one backward pass (`LearnedLogSnr.row_factor`).
"""
# hooks have no type hints:
# pyright: reportUnknownMemberType=false

import torch
from torch import Tensor, nn

from diffusion.process.schedule import MIN_TIME, Schedule, softplus


class LearnedLogSnr(nn.Module, Schedule):
    """log-SNR as a monotone network of t between two fixed ends.

        log_snr(t) = log_snr_max - (log_snr_max - log_snr_min) (m(u) - m(0)) / (m(1) - m(0))
        m(u) = u + sum_k w_k sigmoid(a_k u + b_k),   u = (t - MIN_TIME) / (1 - MIN_TIME)

    with w_k, a_k > 0 (softplus of the parameters), so m rises. At initialisation log-SNR is close to a straight line.

    Args:
        width: number of sigmoids K.
        log_snr_max: log-SNR at t = MIN_TIME.
        log_snr_min: log-SNR at t = 1.

    Attributes:
        row_factor: multiplies the gradient that reaches each row of t, [B]; set it between the forward and the backward
            pass. Twice the row's loss turns the gradient of the loss into that of its square. None changes nothing.
    """

    def __init__(self, width: int, log_snr_max: float, log_snr_min: float) -> None:
        super().__init__()
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min
        centres = (torch.arange(width) + 0.5) / width
        steepness = torch.full((width,), 8.0)
        self.raw_weight = nn.Parameter(torch.full((width,), -5.0))
        self.raw_steepness = nn.Parameter(torch.log(torch.expm1(steepness)))
        self.shift = nn.Parameter(-steepness * centres)
        self.row_factor: Tensor | None = None

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log_snr and d log_snr / dt at t, float64, on the parameters' device.

        Both come from one forward call, so that ZeRO-3 gathers the parameters once.
        """
        u = (t.to(self.shift.device, torch.float64) - MIN_TIME) / (1 - MIN_TIME)
        rise, steepness_of_rise = self._rise(u)
        start, end = self._rise(u.new_tensor([0.0, 1.0]))[0]
        span = (self.log_snr_max - self.log_snr_min) / (end - start)
        return self._scaled(self.log_snr_max - span * (rise - start)), self._scaled(
            -span * steepness_of_rise / (1 - MIN_TIME)
        )

    def _rise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """m(u) and m'(u), float64."""
        weight, steepness = softplus(self.raw_weight.double()), softplus(self.raw_steepness.double())
        gate = torch.sigmoid(steepness * u[..., None] + self.shift.double())
        return u + (weight * gate).sum(-1), 1 + (weight * steepness * gate * (1 - gate)).sum(-1)

    def _scaled(self, output: Tensor) -> Tensor:
        """The same output, with a hook that multiplies its gradient by `row_factor` during the backward pass."""
        if output.requires_grad:
            output.register_hook(self._scale)
        return output

    def _scale(self, gradient: Tensor) -> Tensor:
        return gradient if self.row_factor is None else gradient * self.row_factor.to(gradient)

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR at t, computed on the parameters' device and returned on t's; differentiable in the parameters."""
        return self(t)[0].to(t.device)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """d log_snr / dt at t, negative; differentiable in the parameters."""
        return self(t)[1].to(t.device)

    def network_time_fraction(self, t: Tensor) -> Tensor:
        """(log_snr_max - log_snr(t)) / (log_snr_max - log_snr_min): how far log-SNR has fallen, in [0, 1].

        The network is conditioned on log-SNR rather than t, so that its input means the same as the schedule changes.
        """
        return (self.log_snr_max - self.log_snr(t)) / (self.log_snr_max - self.log_snr_min)
