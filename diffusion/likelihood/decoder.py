"""Two decoders p(x_0 | x_t) of 8-bit data at the least noise, both normalised; they are the last term of the bounds.

- Discretised Gaussian (Ho et al. 2020, equation 13): N(mean, std^2) integrated over the bin of each level, with the
  network's mean. It belongs to the discrete bound.
- Channel decoder (Kingma et al. 2021, equation 13): p(x_0 | z) proportional to q(z | x_0) over the 256 levels of each
  dimension. It does not use the network. It belongs to the continuous bound.
"""
# torch.special has no type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math

import torch
from torch import Tensor

from diffusion.likelihood.quantization import level_index, level_values


def discretised_gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of N(mean, std^2) integrated over the bin of each x (Ho et al. 2020, equation 13).

    Bins are 2 / 255 wide, centred on their levels; the first and the last extend to infinity, so that the 256 bins have
    probability 1.

    Args:
        x: data on the 256-level grid of [-1, 1].
        mean: of the Gaussian, the shape of x.
        std: of the Gaussian, broadcastable to x, above 0.

    Returns:
        Nats, float64, the shape of x.
    """
    x, mean = x.to(torch.float64), mean.to(torch.float64)
    half_bin = 1 / 255
    upper = torch.where(x > 1 - half_bin, math.inf, (x + half_bin - mean) / std)
    lower = torch.where(x < -1 + half_bin, -math.inf, (x - half_bin - mean) / std)
    mirrored = lower > 0  # work in the lower tail, where log_ndtr keeps its precision
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def channel_log_prob(x: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """log p(x | z) = log q(z | x) - log sum_l q(z | l) over the levels l, with q(z | l) = N(z; alpha l, sigma^2).

    Args:
        x: data on the 256-level grid of [-1, 1], [B, ...].
        z: alpha x + sigma eps, the shape of x.
        alpha: coefficient of x.
        sigma: coefficient of eps, above 0.

    Returns:
        Nats, float64, the shape of x.
    """
    level, places = level_values(x), level_index(x)[..., None]

    def of_row(place: Tensor, observed: Tensor) -> Tensor:
        log_q = -((observed.to(torch.float64)[..., None] - alpha * level) ** 2) / (2 * sigma**2)
        return log_q.log_softmax(-1).gather(-1, place)[..., 0]

    return torch.stack([of_row(place, observed) for place, observed in zip(places, z, strict=True)])
