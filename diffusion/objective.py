"""The training objectives: denoising, equation (8), score matching, equation (11), and those for x_0, v and F.

(8) and (11) are computed by separate code; with s_theta = -eps_theta / sigma_t they are equal row by row.
"""

import torch
from torch import Tensor, nn

from diffusion.config import AdaptiveWeighting, ObjectiveConfig
from diffusion.denoiser import Denoiser
from diffusion.likelihood.discrete import reverse_kernel_loss
from diffusion.prediction import edm_target, velocity
from diffusion.process.kernels import diffuse
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.tensors import beside, expand_to
from diffusion.weighting import LogVariance, weights, x0_error_ratio

# weight of the bound in the loss with a learned reverse variance (Nichol & Dhariwal 2021, there in bits, here in nats)
VARIANCE_LOSS_WEIGHT = 1e-3


class Objective(nn.Module):
    """E_{t, x_0, eps}[lambda(t) ||error||^2 / D], by equation (8) for `epsilon` and (11) for `score` networks.

    Networks that predict x_0, v or F are trained on the error of that prediction, with lambda(t) converted to it
    (`weighting.py`). With a learned reverse variance the bound's own terms are added, 1e-3 of their weight (Nichol &
    Dhariwal 2021, section 3.1, L_hybrid). As a module its children are everything that is trained: the network, a
    learned schedule and the adaptive weighting.

    Args:
        config: prediction, weighting and sigma_data.
        denoiser: the network and its process.

    Raises:
        ValueError: the configuration's prediction or sigma_data differ from the denoiser's.
    """

    def __init__(self, config: ObjectiveConfig, denoiser: Denoiser) -> None:
        super().__init__()
        if (config.prediction, config.sigma_data) != (denoiser.prediction, denoiser.sigma_data):
            raise ValueError(
                f"objective.prediction = {config.prediction}, sigma_data = {config.sigma_data:g}: the denoiser's are "
                f"{denoiser.prediction} and {denoiser.sigma_data:g}; allowed: the same"
            )
        self.config = config
        self.denoiser = denoiser
        self._error = {
            "epsilon": self._denoising,
            "score": self._score_matching,
            "x0": self._x0_matching,
            "v": self._v_matching,
            "edm": self._edm_matching,
        }[config.prediction]
        self.network = denoiser.network if isinstance(denoiser.network, nn.Module) else None
        schedule, weighting = denoiser.process.schedule, config.weighting
        self.schedule = schedule if isinstance(schedule, LearnedLogSnr) else None
        adaptive = isinstance(weighting, AdaptiveWeighting)
        self.log_variance = LogVariance(weighting, denoiser.process) if adaptive else None

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each row.

        Args:
            x_0: data [B, C, H, W] in [-1, 1].
            t: times [B], on the CPU.
            eps: standard normal noise, the shape of x_0.
            label: int64 [B] for networks with labels; the null label drops a row's label.

        Returns:
            The weighted loss and the unweighted squared error of eps, both means over dimensions, float32 [B]; the
                second
            carries no gradient.
        """
        process, parameterization = self.denoiser.process, self.denoiser.parameterization
        x_t = diffuse(process, x_0, t, eps)
        prediction, interpolation = self.denoiser.split(self.denoiser.output(x_t, t, label))
        error = self._error(prediction, x_t, x_0, t, eps).float().square().flatten(1).mean(1)
        loss = beside(weights(self.config.weighting, parameterization, process, t), error) * error
        if self.log_variance is not None:
            u = self.log_variance(process.log_snr(t))
            loss = loss * torch.exp(-u) + u
        if interpolation is not None:
            x_theta = parameterization.x0(prediction.detach(), x_t, *self.denoiser.coefficients(x_t, t))
            loss = loss + VARIANCE_LOSS_WEIGHT * beside(
                reverse_kernel_loss(process, x_0, x_theta, t, interpolation), loss
            )
        if self.schedule is not None:
            self.schedule.row_factor = 2 * loss.detach()
        to_epsilon = torch.exp(process.log_snr(t)) / x0_error_ratio(parameterization, process, t)
        return loss, beside(to_epsilon, error).detach() * error.detach()

    def _denoising(self, output: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """Equation (8): eps - eps_theta(x_t, t)."""
        return eps - self.denoiser.parameterization.epsilon(output, x_t, *self.denoiser.coefficients(x_t, t))

    def _score_matching(self, output: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """Equation (11): s_theta(x_t, t) - grad log q(x_t | x_0), the latter being -eps / sigma_t."""
        conditional_score = -eps / expand_to(self.denoiser.process.sigma(t), eps)
        return (
            self.denoiser.parameterization.score(output, x_t, *self.denoiser.coefficients(x_t, t)) - conditional_score
        )

    def _x0_matching(self, output: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """The error of x_0: x_0 - x_theta(x_t, t)."""
        return x_0 - self.denoiser.parameterization.x0(output, x_t, *self.denoiser.coefficients(x_t, t))

    def _v_matching(self, output: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The error of v: v - v_theta(x_t, t)."""
        alpha, sigma = self.denoiser.coefficients(x_t, t)
        return velocity(x_0, eps, alpha, sigma) - self.denoiser.parameterization.v(output, x_t, alpha, sigma)

    def _edm_matching(self, output: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        """The error of F: F - F_theta, which is the error of x_0 over c_out (Karras et al. 2022, equation 8)."""
        return edm_target(x_0, x_t, *self.denoiser.coefficients(x_t, t), self.denoiser.sigma_data) - output


def total_loss(losses: Tensor, row_weights: Tensor, global_batch_size: int, world_size: int) -> Tensor:
    """This rank's part of the global mean loss, scaled for gradients that are averaged over ranks.

        sum_i(losses_i row_weights_i) world_size / global_batch_size

    The mean of these over ranks is the global batch's mean loss, so averaged gradients are the global gradient.

    Args:
        losses: weighted losses of this rank's rows [B].
        row_weights: 1 for a real row and 0 for padding, times the importance weight of the row's t, [B].
        global_batch_size: number of real rows over all ranks.
        world_size: number of ranks whose gradients are averaged.
    """
    return torch.sum(losses * row_weights) * (world_size / global_batch_size)
