"""What a network's output means, and the exact conversions between the meanings.

With x_t = alpha_t x_0 + sigma_t eps:

    x_0   = (x_t - sigma_t eps) / alpha_t
    score = -eps / sigma_t
    v     = alpha_t eps - sigma_t x_0,  so  eps = sigma_t x_t + alpha_t v  and  x_0 = alpha_t x_t - sigma_t v

where v (Salimans & Ho, 2022) is for variance-preserving processes, alpha_t^2 + sigma_t^2 = 1.

A `score` network is scaled by its noise level, s_theta(x, t) = net(x, t) / sigma_t (Song et al. 2021), so that its raw
output has unit variance at every t; s_theta itself is what equation (11) trains.
"""

from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "score", "x0", "v"]


def output_to_epsilon(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps_theta from a network's raw output at x_t; alpha_t and sigma_t > 0, broadcastable to it."""
    match kind:
        case "epsilon":
            return output
        case "score":
            return -output
        case "x0":
            return x0_to_epsilon(output, x_t, alpha, sigma)
        case "v":
            return sigma * x_t + alpha * output


def output_to_x0(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The estimate of x_0 from a network's raw output at x_t; alpha_t and sigma_t > 0, broadcastable to it."""
    match kind:
        case "x0":
            return output
        case "v":
            return alpha * x_t - sigma * output
        case "epsilon" | "score":
            return epsilon_to_x0(output_to_epsilon(kind, output, x_t, alpha, sigma), x_t, alpha, sigma)


def output_to_score(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """s_theta from a network's raw output at x_t; alpha_t and sigma_t > 0, broadcastable to it."""
    if kind == "score":
        return output / sigma
    return -output_to_epsilon(kind, output, x_t, alpha, sigma) / sigma


def epsilon_to_x0(epsilon: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = (x_t - sigma_t eps) / alpha_t."""
    return (x_t - sigma * epsilon) / alpha


def x0_to_epsilon(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Eps = (x_t - alpha_t x_0) / sigma_t; sigma_t > 0."""
    return (x_t - alpha * x_0) / sigma


def velocity(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """V = alpha_t eps - sigma_t x_0: the v that a `v` network is trained to give."""
    return alpha * eps - sigma * x_0
