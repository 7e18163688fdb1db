"""Denoiser = network + schedule + prediction: the one object that training, evaluation and sampling pass around."""

from collections.abc import Callable

from torch import Tensor

from diffusion.prediction import Prediction, output_to_epsilon, output_to_score, output_to_x0, velocity
from diffusion.schedule import Schedule, rows

Network = Callable[[Tensor, Tensor], Tensor]


class Denoiser:
    """A network seen as eps_theta, s_theta, v_theta or a denoised x_0, whichever it was trained to predict.

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
        return output_to_epsilon(self.prediction, self.network(x_t, t), x_t, *self._coefficients(x_t, t))

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """s_theta(x_t, t), equation (11); t >= 1."""
        return output_to_score(self.prediction, self.network(x_t, t), x_t, *self._coefficients(x_t, t))

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The denoised estimate of x_0."""
        return output_to_x0(self.prediction, self.network(x_t, t), x_t, *self._coefficients(x_t, t))

    def v(self, x_t: Tensor, t: Tensor) -> Tensor:
        """v_theta(x_t, t) = alpha_t eps_theta - sigma_t x_theta."""
        output = self.network(x_t, t)
        if self.prediction == "v":
            return output
        alpha, sigma = self._coefficients(x_t, t)
        x_0 = output_to_x0(self.prediction, output, x_t, alpha, sigma)
        return velocity(x_0, output_to_epsilon(self.prediction, output, x_t, alpha, sigma), alpha, sigma)

    def _coefficients(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of each row, shaped for x_t."""
        t = t.cpu()
        return rows(self.schedule.alpha[t], x_t), rows(self.schedule.sigma[t], x_t)
