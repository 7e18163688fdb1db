"""The two training objectives: denoising, equation (8), and score matching, equation (11).

They are separate paths to one number: with s_theta = -eps_theta / sigma_t their losses are equal row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.chain import diffuse
from diffusion.config import ObjectiveConfig
from diffusion.denoiser import Denoiser
from diffusion.schedule import rows
from diffusion.weighting import epsilon_weights


@dataclass(frozen=True)
class RowLosses:
    """Per-row results, float32 [B]: the weighted loss (mean over dimensions) and the unweighted epsilon error."""

    weighted: Tensor
    epsilon_mse: Tensor


class Objective:
    """E_{t, x_0, eps}[ lambda(t) ||error||^2 / D ], by equation (8) for `epsilon` and (11) for `score` networks."""

    def __init__(self, config: ObjectiveConfig, denoiser: Denoiser) -> None:
        """Tabulate lambda(t) for the denoiser's schedule; config.prediction must be the denoiser's."""
        self.denoiser = denoiser
        self._row_losses = {"epsilon": self._denoising, "score": self._score_matching}[config.prediction]
        self._weights = epsilon_weights(config.weighting, denoiser.schedule)

    def __call__(self, x_0: Tensor, t: Tensor, eps: Tensor) -> RowLosses:
        """Losses of rows x_0 [B, C, H, W] in [-1, 1] at steps t int64 [B] with noise eps of x_0's shape."""
        return self._row_losses(x_0, t, eps)

    def _denoising(self, x_0: Tensor, t: Tensor, eps: Tensor) -> RowLosses:
        x_t = diffuse(self.denoiser.schedule, x_0, t, eps)
        error = _mean_square(eps - self.denoiser.epsilon(x_t, t))
        weight = self._weights[t.cpu()].to(error)
        return RowLosses(weight * error, error.detach())

    def _score_matching(self, x_0: Tensor, t: Tensor, eps: Tensor) -> RowLosses:
        sigma = self.denoiser.schedule.sigma[t.cpu()]
        x_t = diffuse(self.denoiser.schedule, x_0, t, eps)
        conditional_score = -eps / rows(sigma, eps)
        error = _mean_square(self.denoiser.score(x_t, t) - conditional_score)
        weight = (self._weights[t.cpu()] * sigma**2).to(error)
        return RowLosses(weight * error, (sigma**2).to(error) * error.detach())


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
