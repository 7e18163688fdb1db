"""UniPC (Zhao et al., 2023) for predictions of x_0: a multistep predictor, corrected by its next evaluation.

Predictor and corrector are one formula on different points. With lambda = log_snr / 2, D_m = x_0(lambda_m) -
x_0(lambda_0), r_m = (lambda_m - lambda_0) / h and weights w that make it exact for polynomials through all points,

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) x_0 + alpha_s sum_m w_m D_m

The weights are solved for exactly at every order, so the paper's choice of B(h) does not matter.
"""
# torch.linalg has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math

import torch
from torch import Tensor

from diffusion.config import UniPC
from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats

History = list[tuple[float, Tensor]]


class UniPCSolver(GridSolver):
    """Predict from p = `order` points, and correct from p + 1, the new evaluation included.

    The corrector costs no further evaluation: one a step. Order p + 1. The step to data is of first order.
    """

    def __init__(self, config: UniPC, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)
        self.order = config.order

    def steps(self) -> Steps:
        """Evaluate at the prediction, correct the step that led to it, predict the next."""
        history: History = []
        start, begun = self.x, 0.0  # where the step that ends here began
        for i, (at_t, at_s) in enumerate(self.intervals()):
            x_0, _, _ = yield self.wanted(at_t)
            here, there = self.log_snrs[i] / 2, self.log_snrs[i + 1] / 2
            if history and math.isfinite(begun):
                before = self.points[i - 1]
                moved = change(history, here - begun, (here, x_0))
                self.x = (at_t.sigma / before.sigma) * start + at_t.alpha * moved
            history = [(here, x_0), *(past for past in history if math.isfinite(past[0]))][: self.order]
            start, begun = self.x, here
            self.x = (at_s.sigma / at_t.sigma) * self.x + at_s.alpha * change(history, there - here)


def change(history: History, h: float, ahead: tuple[float, Tensor] | None = None) -> Tensor:
    """What the estimates of x_0 add to x_s / alpha_s over a step of length h from the newest point of `history`.

    Args:
        history: (lambda, x_0) of past evaluations, newest first.
        h: length of the step in lambda = log_snr / 2; may be infinite.
        ahead: (lambda, x_0) at the end of the step, for the corrector; None for the predictor.

    Returns:
        The shape of x_0.
    """
    (origin, x_0), *others = history
    total = -math.expm1(-h) * x_0
    if math.isinf(h):
        return total
    points = [*others, *([ahead] if ahead else [])]
    for weight, (_, other) in zip(weights([(place - origin) / h for place, _ in points], h), points, strict=True):
        total = total + weight * (other - x_0)
    return total


def weights(places: list[float], h: float) -> list[float]:
    """The weights w_m with which sum_m w_m D_m is exact for polynomials through 0 and `places`.

    They solve sum_m w_m r_m^k = k! phi_{k+1}(h) / h^k, phi_1 = 1 - e^{-h}, phi_{k+1} = h^k / k! - phi_k, k = 1..M.

    Args:
        places: r_1..r_M, the points relative to the newest in units of h.
        h: length of the step in lambda.

    Returns:
        w_1..w_M.
    """
    if not places:
        return []
    r = torch.tensor(places, dtype=torch.float64)
    powers = torch.arange(1, len(places) + 1, dtype=torch.float64)
    moments: list[float] = []
    phi = -math.expm1(-h)
    for k in range(1, len(places) + 1):
        phi = h**k / math.factorial(k) - phi
        moments.append(math.factorial(k) * phi / h**k)
    return to_floats(torch.linalg.solve(r[None, :] ** powers[:, None], torch.tensor(moments, dtype=torch.float64)))
