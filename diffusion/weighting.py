"""lambda(t): how much an error at step t counts, equations (8) and (11).

Weights are stated for the epsilon error of equation (8) and carried over to the error of what the network predicts:

    ||eps - eps_theta||^2 = sigma_t^2 ||score - s_theta||^2 = SNR ||x_0 - x_theta||^2 = alpha_t^2 ||v - v_theta||^2

with SNR = alpha_t^2 / sigma_t^2, so one weighting gives one loss whatever is predicted. The exception is `simple`: by
the field's custom it is 1 on the predicted quantity's own error, for x_0 and v too.
"""

import torch
from torch import Tensor

from diffusion.config import (
    LikelihoodWeighting,
    MinSnrWeighting,
    P2Weighting,
    SimpleWeighting,
    SnrWeighting,
    VlbWeighting,
    WeightingConfig,
)
from diffusion.prediction import Prediction
from diffusion.schedule import Schedule


def epsilon_error_ratio(prediction: Prediction, schedule: Schedule) -> Tensor:
    """||eps - eps_theta||^2 over the squared error of the prediction, float64 [T + 1]; entry 0 is unused.

    `epsilon` 1, `score` sigma_t^2, `x0` SNR, `v` alpha_t^2.
    """
    match prediction:
        case "epsilon":
            return torch.ones_like(schedule.sigma)
        case "score":
            return schedule.sigma**2
        case "x0":
            return torch.exp(schedule.log_snr)
        case "v":
            return schedule.alpha**2


def weights(config: WeightingConfig, schedule: Schedule, prediction: Prediction) -> Tensor:
    """lambda(t) on the squared error of the prediction as a table, float64 [T + 1]; entry 0 is unused and zero."""
    if isinstance(config, SimpleWeighting) and prediction in ("x0", "v"):
        table = torch.ones_like(schedule.sigma)
    else:
        table = epsilon_weights(config, schedule) * epsilon_error_ratio(prediction, schedule)
    table[0] = 0
    return table


def epsilon_weights(config: WeightingConfig, schedule: Schedule) -> Tensor:
    """lambda(t) of equation (8) as a table, float64 [T + 1]; entry 0 is unused and zero.

    - `simple`: 1.
    - `vlb`: T beta_t / (2 (1 - beta_t) sigma_t^2), so that the mean over t of the weighted squared error is, in nats,
      the part of equation (7) that depends on theta when Sigma_theta = beta_t (Ho et al. 2020, equation 12).
    - `likelihood`: T beta_t / (2 sigma_t^2) = g(t)^2 / (2 sigma_t^2), g^2 = beta(t / T) = T beta_t being that of
      equation (12): half of lambda = g^2 in (11), the bound on the SDE's likelihood (Song et al. 2021, theorem 1).
    - `snr`: SNR on the x_0 error (Salimans & Ho, 2022), which is 1 here.
    - `min_snr`: min(SNR, gamma) on the x_0 error, min(SNR, gamma) / SNR here (Hang et al. 2023).
    - `p2`: (k + SNR)^-gamma (Choi et al. 2022).
    """
    t = torch.arange(1, schedule.num_steps + 1)
    beta = schedule.transition_variance(t - 1, t)
    variance, snr = schedule.sigma[t] ** 2, torch.exp(schedule.log_snr[t])
    match config:
        case SimpleWeighting() | SnrWeighting():
            table = torch.ones_like(beta)
        case VlbWeighting():
            table = schedule.num_steps * beta / (2 * (1 - beta) * variance)
        case LikelihoodWeighting():
            table = schedule.num_steps * beta / (2 * variance)
        case MinSnrWeighting(gamma=gamma):
            table = torch.clamp(gamma / snr, max=1)
        case P2Weighting(k=k, gamma=gamma):
            table = (k + snr) ** -gamma
    return torch.cat([torch.zeros(1, dtype=torch.float64), table])
