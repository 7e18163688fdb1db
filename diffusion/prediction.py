"""Parameterizations: what a network's output means, and the exact conversions between the meanings.

With x_t = alpha_t x_0 + sigma_t eps:

    x_0   = (x_t - sigma_t eps) / alpha_t
    score = -eps / sigma_t
    v     = alpha_t eps - sigma_t x_0,  so  eps = sigma_t x_t + alpha_t v  and  x_0 = alpha_t x_t - sigma_t v

where v (Salimans & Ho, 2022) is for variance-preserving processes, alpha_t^2 + sigma_t^2 = 1.

A `score` network is scaled by its noise level, s_theta(x, t) = net(x, t) / sigma_t (Song et al. 2021), so that its raw
output has unit variance at every t; s_theta itself is what equation (11) trains.

An `edm` network is preconditioned (Karras et al. 2022, equation 7): with y = x_t / alpha_t and s = sigma_t / alpha_t,

    x_0 = c_skip y + c_out F(c_in y),  c_skip = sigma_data^2 / (s^2 + sigma_data^2),
    c_out = s sigma_data / sqrt(s^2 + sigma_data^2),  c_in = 1 / sqrt(s^2 + sigma_data^2).

In all functions alpha_t >= 0 and sigma_t > 0 are Python floats, or tensors that broadcast against x_t [B, ...].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "score", "x0", "v", "edm"]
Coefficient = Tensor | float


@dataclass(frozen=True)
class Parameterization:
    """Converts a network's raw output to eps, x_0, score or v, and makes the input of an `edm` network.

    Methods take the raw output and x_t, both [B, ...], with alpha_t and sigma_t > 0 as floats or broadcastable tensors,
    and return a tensor of the shape of x_t.

    Attributes:
        kind: what the output is: `epsilon`, `score`, `x0`, `v` or `edm`.
        sigma_data: standard deviation of the data that `edm` assumes, in the units of x_0.
    """

    kind: Prediction
    sigma_data: float = 0.5

    def network_input(self, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The network's input: x_t, or c_in x_t / alpha_t for `edm`."""
        if self.kind != "edm":
            return x_t
        return x_t / edm_norm(alpha, sigma, self.sigma_data)

    def epsilon(self, output: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The estimate eps_theta of the noise."""
        match self.kind:
            case "epsilon":
                return output
            case "score":
                return -output
            case "v":
                return sigma * x_t + alpha * output
            case _:  # x0 and edm
                return x0_to_epsilon(self.x0(output, x_t, alpha, sigma), x_t, alpha, sigma)

    def x0(self, output: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The estimate x_theta of x_0; alpha_t = 0 is allowed only if the network predicts x_0 or v."""
        match self.kind:
            case "x0":
                return output
            case "v":
                return alpha * x_t - sigma * output
            case "epsilon" | "score":
                return epsilon_to_x0(self.epsilon(output, x_t, alpha, sigma), x_t, alpha, sigma)
            case _:  # edm
                norm = edm_norm(alpha, sigma, self.sigma_data)
                return (alpha * self.sigma_data**2 / norm**2) * x_t + (sigma * self.sigma_data / norm) * output

    def score(self, output: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The estimate s_theta = -eps_theta / sigma_t of the score."""
        if self.kind == "score":
            return output / sigma
        return -self.epsilon(output, x_t, alpha, sigma) / sigma

    def v(self, output: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """v_theta = alpha_t eps_theta - sigma_t x_theta."""
        if self.kind == "v":
            return output
        x_0, epsilon = self.x0(output, x_t, alpha, sigma), self.epsilon(output, x_t, alpha, sigma)
        return velocity(x_0, epsilon, alpha, sigma)


def edm_norm(alpha: Coefficient, sigma: Coefficient, sigma_data: float) -> Coefficient:
    """alpha_t sqrt(s^2 + sigma_data^2) = alpha_t / c_in, with s = sigma_t / alpha_t.

    It is the standard deviation of x_t if that of x_0 is sigma_data.
    """
    total = sigma**2 + (alpha * sigma_data) ** 2
    return torch.sqrt(total) if isinstance(total, Tensor) else total**0.5


def epsilon_to_x0(epsilon: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """x_0 = (x_t - sigma_t eps) / alpha_t; alpha_t > 0."""
    return (x_t - sigma * epsilon) / alpha


def x0_to_epsilon(x_0: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """eps = (x_t - alpha_t x_0) / sigma_t; sigma_t > 0."""
    return (x_t - alpha * x_0) / sigma


def velocity(x_0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """v = alpha_t eps - sigma_t x_0, the target of a `v` network (Salimans & Ho, 2022).

    It is not the velocity dx_t / dt of flow matching.
    """
    return alpha * eps - sigma * x_0


def edm_target(x_0: Tensor, x_t: Tensor, alpha: Coefficient, sigma: Coefficient, sigma_data: float) -> Tensor:
    """F = (x_0 - c_skip y) / c_out, the target of an `edm` network (Karras et al. 2022, equation 8)."""
    norm = edm_norm(alpha, sigma, sigma_data)
    return (x_0 - (alpha * sigma_data**2 / norm**2) * x_t) * (norm / (sigma * sigma_data))
