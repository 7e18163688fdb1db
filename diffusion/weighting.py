"""lambda(t): how much an error at step t counts, equations (8) and (11).

Weights are stated for the epsilon error of equation (8). The same weighting of the score error of equation (11) is
lambda(t) sigma_t^2, because ||eps - eps_theta||^2 = sigma_t^2 ||s_theta - grad log q(x_t | x_0)||^2.
"""

import torch
from torch import Tensor

from diffusion.config import WeightingConfig
from diffusion.schedule import Schedule


def epsilon_weights(config: WeightingConfig, schedule: Schedule) -> Tensor:
    """lambda(t) of equation (8) as a table, float64 [T + 1]; entry 0 is unused and zero.

    `simple`: 1. `vlb`: T beta_t / (2 (1 - beta_t) sigma_t^2), so that the mean over t of the weighted squared error
    is, in nats, the part of equation (7) that depends on theta when Sigma_theta = beta_t (Ho et al. 2020, equation 12).
    """
    t = torch.arange(1, schedule.num_steps + 1)
    if config.kind == "simple":
        weights = torch.ones(schedule.num_steps, dtype=torch.float64)
    else:
        beta = schedule.transition_variance(t - 1, t)
        weights = schedule.num_steps * beta / (2 * (1 - beta) * schedule.sigma[t] ** 2)
    return torch.cat([torch.zeros(1, dtype=torch.float64), weights])
