"""What a network's output means, and the exact conversions between the meanings.

With x_t = alpha_t x_0 + sigma_t eps:  score = -eps / sigma_t  and  x_0 = (x_t - sigma_t eps) / alpha_t.

A `score` network is scaled by its noise level, s_theta(x, t) = net(x, t) / sigma_t (Song et al. 2021), so that its raw
output has unit variance at every t; s_theta itself is what equation (11) trains.
"""

from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "score"]


def output_to_epsilon(kind: Prediction, output: Tensor) -> Tensor:
    """eps_theta from a network's raw output."""
    return output if kind == "epsilon" else -output


def output_to_score(kind: Prediction, output: Tensor, sigma: Tensor) -> Tensor:
    """s_theta from a network's raw output; sigma_t > 0, broadcastable to the output."""
    return (output if kind == "score" else -output) / sigma


def epsilon_to_x0(epsilon: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = (x_t - sigma_t eps) / alpha_t."""
    return (x_t - sigma * epsilon) / alpha


def x0_to_epsilon(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Eps = (x_t - alpha_t x_0) / sigma_t; sigma_t > 0."""
    return (x_t - alpha * x_0) / sigma
