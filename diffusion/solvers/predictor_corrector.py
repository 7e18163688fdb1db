"""Predictor-corrector sampling (Song et al. 2021, algorithms 1, 4, 5): a step of the reverse SDE, then Langevin steps.

The predictor is the ancestral kernel with Sigma_theta = beta. To first order it is their reverse diffusion predictor;
for a given x_0 it is exact however far apart t and s are.
"""

import torch
from torch import Tensor

from diffusion.config import PredictorCorrector
from diffusion.denoiser import Denoiser
from diffusion.process.kernels import posterior, transition_variance
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats


class PredictorCorrectorSolver(GridSolver):
    """An ancestral step from t to s, then `corrector_steps` Langevin steps at s; the step to data is not corrected.

    Evaluations: one a step, and one for each Langevin step.
    """

    def __init__(
        self, config: PredictorCorrector, denoiser: Denoiser, noise: Noise, label: Tensor | None = None
    ) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)
        self.corrector_steps, self.corrector_snr = config.corrector_steps, config.corrector_snr

    def steps(self) -> Steps:
        """For each step: an ancestral step from t to s, then the Langevin steps at s."""
        s, t = self.times[1:], self.times[:-1]
        q, stds = posterior(self.process, s, t), to_floats(transition_variance(self.process, s, t).sqrt())
        means, draws = list(zip(to_floats(q.coef_x_t), to_floats(q.coef_x_0), strict=True)), 0
        for i, (at_t, at_s) in enumerate(self.intervals()):
            estimate = yield self.wanted(at_t)
            coef_x_t, coef_x_0 = means[i]
            self.x = coef_x_t * self.x + coef_x_0 * estimate.x_0
            if at_s.t == 0:
                return
            draws += 1
            self.x = self.x + stds[i] * self.noise.draw(draws).to(self.x)
            for _ in range(self.corrector_steps):
                estimate = yield self.wanted(at_s)
                draws += 1
                z = self.noise.draw(draws).to(self.x)
                score = -estimate.epsilon / at_s.sigma
                self.x = langevin_step(self.x, score, z, step_sizes(score, z, self.corrector_snr))


def step_sizes(score: Tensor, z: Tensor, snr: float) -> Tensor:
    """Langevin step sizes tau = 2 (snr ||z|| / ||score||)^2, of each row (Song et al. 2021, algorithms 4 and 5).

    The norms are a row's own, where the paper's code takes the mean over the batch: a row never depends on others.

    Args:
        score: [B, ...].
        z: the step's noise, the shape of `score`.
        snr: ratio of the step's drift to its noise.

    Returns:
        [B]; 0 where the score is 0, as a newly initialised network's may be.
    """
    score_norms = squared_norms(score)
    tau = 2 * snr**2 * squared_norms(z) / score_norms
    return torch.where(score_norms > 0, tau, 0.0)


def squared_norms(x: Tensor) -> Tensor:
    """||x||^2 of each row, [B], by pairwise summation.

    The order of a library's reduction may depend on the number of rows, this one does not.
    """
    total = x.flatten(1).square()
    while (half := total.shape[1] // 2) > 0:
        total = torch.cat([total[:, :half] + total[:, half : 2 * half], total[:, 2 * half :]], dim=1)
    return total[:, 0]


def langevin_step(x: Tensor, score: Tensor, z: Tensor, tau: Tensor) -> Tensor:
    """A step of Langevin dynamics: x + tau score + sqrt(2 tau) z.

    On a Gaussian of variance v its stationary variance is v / (1 - tau / (2 v)).

    Args:
        x: [B, ...].
        score: at x, the shape of x.
        z: standard normal noise, the shape of x.
        tau: step size of each row, [B].
    """
    tau = tau.reshape(-1, *[1] * (x.ndim - 1))
    return x + tau * score + torch.sqrt(2 * tau) * z
