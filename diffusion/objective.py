"""The training objectives: denoising, equation (8), score matching, equation (11), and their relatives for x_0 and v.

They are separate paths to one number: with s_theta = -eps_theta / sigma_t, (8) and (11) are equal row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.chain import diffuse
from diffusion.config import ObjectiveConfig
from diffusion.denoiser import Denoiser
from diffusion.prediction import velocity
from diffusion.schedule import rows
from diffusion.weighting import epsilon_error_ratio, weights


@dataclass(frozen=True)
class RowLosses:
    """Per-row results, float32 [B]: the weighted loss (mean over dimensions) and the unweighted epsilon error."""

    weighted: Tensor
    epsilon_mse: Tensor


class Objective:
    """E_{t, x_0, eps}[ lambda(t) ||error||^2 / D ], by equation (8) for `epsilon` and (11) for `score` networks.

    Networks that predict x_0 or v are trained on the error of that, with lambda(t) carried over (`weighting.py`).
    """

    def __init__(self, config: ObjectiveConfig, denoiser: Denoiser) -> None:
        """Tabulate lambda(t) for the denoiser's schedule; config.prediction must be the denoiser's."""
        self.denoiser = denoiser
        self._errors = {
            "epsilon": self._denoising,
            "score": self._score_matching,
            "x0": self._x0_matching,
            "v": self._v_matching,
        }[config.prediction]
        self._weights = weights(config.weighting, denoiser.schedule, config.prediction)
        self._to_epsilon_error = epsilon_error_ratio(config.prediction, denoiser.schedule)

    def __call__(self, x_0: Tensor, t: Tensor, eps: Tensor) -> RowLosses:
        """Losses of rows x_0 [B, C, H, W] in [-1, 1] at steps t int64 [B] with noise eps of x_0's shape."""
        x_t = diffuse(self.denoiser.schedule, x_0, t, eps)
        error = _mean_square(self._errors(x_t, x_0, t, eps))
        step = t.cpu()
        weight, ratio = self._weights[step].to(error), self._to_epsilon_error[step].to(error)
        return RowLosses(weight * error, ratio * error.detach())

    def _denoising(self, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002 - one form for all
        """Equation (8): eps - eps_theta(x_t, t)."""
        return eps - self.denoiser.epsilon(x_t, t)

    def _score_matching(self, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """Equation (11): s_theta(x_t, t) - grad log q(x_t | x_0), the latter being -eps / sigma_t."""
        conditional_score = -eps / rows(self.denoiser.schedule.sigma[t.cpu()], eps)
        return self.denoiser.score(x_t, t) - conditional_score

    def _x0_matching(self, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """x_0 - x_theta(x_t, t)."""
        return x_0 - self.denoiser.x0(x_t, t)

    def _v_matching(self, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """v - v_theta(x_t, t)."""
        schedule, step = self.denoiser.schedule, t.cpu()
        v = velocity(x_0, eps, rows(schedule.alpha[step], x_0), rows(schedule.sigma[step], x_0))
        return v - self.denoiser.v(x_t, t)


def _mean_square(error: Tensor) -> Tensor:
    return error.float().square().flatten(1).mean(1)


def total_loss(losses: RowLosses, row_weights: Tensor, global_batch_size: int, world_size: int) -> Tensor:
    """This rank's share of the global mean, scaled so that averaging gradients over ranks gives the global gradient.

    Args:
        losses: of this rank's rows [B].
        row_weights: 1 for a real row, 0 for padding, [B].
        global_batch_size: number of real rows over all ranks.
        world_size: number of ranks whose gradients are averaged.
    """
    return torch.sum(losses.weighted * row_weights) * (world_size / global_batch_size)
