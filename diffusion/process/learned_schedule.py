"""A learned noise schedule: log-SNR a monotone network of t (Kingma et al. 2021, "Variational diffusion models").

The continuous bound depends on a schedule through its two ends alone, which stay as configured; what is learned between
them is where the terms of the bound are estimated. Training therefore gives the schedule the gradient of the SQUARED
loss, the variance of the bound's estimate, while the network gets that of the loss itself (`row_factor`).
"""
# hooks have no type hints:
# pyright: reportUnknownMemberType=false

import torch
from torch import Tensor, nn

from diffusion.process.schedule import MIN_TIME, Schedule, softplus


class LearnedLogSnr(nn.Module, Schedule):
    """log_snr(t) = max - (max - min) (m(u) - m(0)) / (m(1) - m(0)), u = (t - MIN_TIME) / (1 - MIN_TIME).

    m(u) = u + sum_k w_k sigmoid(a_k u + b_k) with w_k, a_k > 0 by softplus, so m rises; it begins close to a line.

    Args:
        width: number of sigmoids.
        log_snr_max: log-SNR at MIN_TIME.
        log_snr_min: log-SNR at 1.

    Attributes:
        row_factor: what the gradient of each row of t is multiplied by on its way back; set it between the loss and
            its backward pass, to twice the row's loss for the gradient of the squared loss. None leaves gradients be.
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
        """log_snr and its slope; one forward of its own, so that ZeRO-3 gathers the parameters."""
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
        """The output, its gradient to be multiplied by what `row_factor` is by then."""
        if output.requires_grad:
            output.register_hook(self._scale)
        return output

    def _scale(self, gradient: Tensor) -> Tensor:
        return gradient if self.row_factor is None else gradient * self.row_factor.to(gradient)

    def log_snr(self, t: Tensor) -> Tensor:
        """The network, evaluated on the device of its parameters."""
        return self(t)[0].to(t.device)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """Its derivative in t."""
        return self(t)[1].to(t.device)

    def network_time_fraction(self, t: Tensor) -> Tensor:
        """How far log-SNR has fallen, so that the network's clock does not move under it as the schedule learns."""
        return (self.log_snr_max - self.log_snr(t)) / (self.log_snr_max - self.log_snr_min)
