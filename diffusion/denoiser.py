"""Denoiser = network + schedule + prediction: the one object that training, evaluation and sampling pass around."""

from collections.abc import Callable

from torch import Tensor

from diffusion.prediction import Prediction, epsilon_to_x0, output_to_epsilon, output_to_score
from diffusion.schedule import Schedule, rows

Network = Callable[[Tensor, Tensor], Tensor]


class Denoiser:
    """A network seen as eps_theta, s_theta or a denoised x_0, whichever it was trained to predict.

    Args:
        network: maps x_t [B, C, H, W] and t int64 [B] to an output of x_t's shape.
        schedule: the chain that defines alpha_t and sigma_t.
        prediction: what the network's raw output means.
    """

    def __init__(self, network: Network, schedule: Schedule, prediction: Prediction) -> None:
        """Tie the three together; nothing is copied."""
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction

    def epsilon(self, x_t: Tensor, t: Tensor) -> Tensor:
        """eps_theta(x_t, t), equation (8)."""
        return output_to_epsilon(self.prediction, self.network(x_t, t))

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """s_theta(x_t, t), equation (11); t >= 1."""
        sigma = rows(self.schedule.sigma[t.cpu()], x_t)
        return output_to_score(self.prediction, self.network(x_t, t), sigma)

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The denoised estimate of x_0."""
        t_cpu = t.cpu()
        alpha, sigma = rows(self.schedule.alpha[t_cpu], x_t), rows(self.schedule.sigma[t_cpu], x_t)
        return epsilon_to_x0(self.epsilon(x_t, t), x_t, alpha, sigma)
