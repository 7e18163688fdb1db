"""Denoiser = network + process + prediction: the one object that training, evaluation and sampling exchange."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.prediction import Parameterization, Prediction
from diffusion.process.sde import Process, SubVp, Ve
from diffusion.tensors import beside, expand_to

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """A network with its process, read as eps_theta, s_theta, v_theta or x_theta, whichever it was trained to predict.

    x_t is [B, C, H, W]; times t are [B] on the CPU; labels are int64 [B] or None. Estimates have the shape of x_t. With
    `learned_variance` the network's output has twice the channels of x_t: the prediction, then the interpolation of
    `kernels.learned_reverse_variance`.

    Attributes:
        network: maps x [B, C, H, W], float time [B] and labels to a raw output.
        process: defines alpha_t and sigma_t.
        prediction: what the raw output means.
        sigma_data: standard deviation of the data that an `edm` network assumes.
        null_label: the label that means "no label", for networks with labels; None if there is no such label.
        needs_label: the network has labels but none that means "no label".

    Raises:
        ValueError: a prediction that does not determine x_0 at a terminal SNR of zero, or v where alpha^2 + sigma^2 is
            not 1.
    """

    network: Network
    process: Process
    prediction: Prediction
    sigma_data: float = 0.5
    null_label: int | None = None
    needs_label: bool = False

    def __post_init__(self) -> None:
        with torch.no_grad():
            end = float(self.process.log_snr(torch.tensor(self.process.t_max, dtype=torch.float64)))
        if math.isinf(end) and self.prediction not in ("x0", "v"):
            raise ValueError(
                f"objective.prediction = {self.prediction} says nothing of x_0 where the terminal SNR is zero; use v "
                "or x0, or process.schedule.zero_terminal_snr = false"
            )
        if self.prediction == "v" and isinstance(self.process, SubVp | Ve):
            raise ValueError(
                "objective.prediction = v needs alpha^2 + sigma^2 = 1, which sub_vp and ve do not keep; use epsilon, "
                "score, x0 or edm"
            )

    @property
    def parameterization(self) -> Parameterization:
        """The conversions from the raw output to eps, x_0, score and v."""
        return Parameterization(self.prediction, self.sigma_data)

    @property
    def has_labels(self) -> bool:
        """Whether rows may have labels."""
        return self.needs_label or self.null_label is not None

    @property
    def learned_variance(self) -> bool:
        """Whether the network also gives the reverse variance."""
        return self.process.reverse_variance == "learned"

    def output(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's raw output, [B, C, H, W], or [B, 2 C, H, W] with a learned reverse variance.

        Without labels, every row gets the null label if there is one.
        """
        if self.null_label is not None and label is None:
            label = torch.full((len(x_t),), self.null_label, dtype=torch.int64)
        if label is not None:
            label = label.to(x_t.device, non_blocking=x_t.is_cuda)
        x = x_t if self.prediction != "edm" else self.parameterization.network_input(x_t, *self.coefficients(x_t, t))
        time = beside(self.process.network_time(t), x_t)
        return self.network(x, time, label)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """A raw output as the prediction and the interpolation of the reverse variance (None if not learned)."""
        if not self.learned_variance:
            return output, None
        prediction, interpolation = output.chunk(2, dim=1)
        return prediction, interpolation

    def epsilon(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """eps_theta(x_t, t), equation (8), for t > 0."""
        return self.parameterization.epsilon(self._prediction(x_t, t, label), x_t, *self.coefficients(x_t, t))

    def score(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """s_theta(x_t, t), equation (11), for t > 0."""
        return self.parameterization.score(self._prediction(x_t, t, label), x_t, *self.coefficients(x_t, t))

    def x0(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x_theta(x_t, t), the estimate of E[x_0 | x_t]; not clipped."""
        return self.parameterization.x0(self._prediction(x_t, t, label), x_t, *self.coefficients(x_t, t))

    def v(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """v_theta(x_t, t) = alpha_t eps_theta - sigma_t x_theta."""
        return self.parameterization.v(self._prediction(x_t, t, label), x_t, *self.coefficients(x_t, t))

    def coefficients(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of each row, [B, 1, ..., 1] in the dtype and on the device of x_t."""
        log_snr = self.process.log_snr(t)
        return expand_to(self.process.alpha_at(log_snr), x_t), expand_to(self.process.sigma_at(log_snr), x_t)

    def _prediction(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.split(self.output(x_t, t, label))[0]
