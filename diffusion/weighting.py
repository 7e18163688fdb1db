"""lambda(t): the weight of the squared error at time t in equations (8) and (11).

Weights are stated for the squared error of x_0 and converted to that of the network's own prediction by

    ||eps - eps_theta||^2 = sigma_t^2 ||score - s_theta||^2 = SNR ||x_0 - x_theta||^2
    ||v - v_theta||^2 = (SNR + 1) ||x_0 - x_theta||^2,   ||F - F_theta||^2 = ||x_0 - x_theta||^2 / c_out^2

with SNR = alpha_t^2 / sigma_t^2 and c_out of `prediction.py`, so a weighting gives the same loss under every
parameterization. There are two exceptions: `simple`, following common usage, is 1 on the error of whatever is
predicted, and `adaptive` is learned.
"""

import torch
from torch import Tensor, nn

from diffusion.config import (
    AdaptiveWeighting,
    EdmWeighting,
    LikelihoodWeighting,
    MinSnrWeighting,
    P2Weighting,
    SigmoidWeighting,
    SimpleWeighting,
    VlbWeighting,
    WeightingConfig,
)
from diffusion.prediction import Parameterization
from diffusion.process.kernels import transition_variance
from diffusion.process.sde import Chain, Process


def x0_error_ratio(parameterization: Parameterization, process: Process, t: Tensor) -> Tensor:
    """The squared error of the prediction divided by that of x_0, float64 [B].

        epsilon: SNR    score: SNR / sigma_t^2    x0: 1    v: SNR + 1    edm: 1 / c_out^2 = SNR + 1 / sigma_data^2

    Args:
        parameterization: what the network predicts.
        process: gives SNR and sigma_t.
        t: times [B], t > 0.
    """
    log_snr = process.log_snr(t)
    snr = torch.exp(log_snr)
    match parameterization.kind:
        case "epsilon":
            return snr
        case "score":
            return snr / process.sigma_at(log_snr) ** 2
        case "x0":
            return torch.ones_like(snr)
        case "v":
            return snr + 1
        case _:  # edm
            return snr + parameterization.sigma_data**-2


def weights(config: WeightingConfig, parameterization: Parameterization, process: Process, t: Tensor) -> Tensor:
    """lambda(t) on the squared error of the network's own prediction, float64 [B].

    Args:
        config: which weighting; `simple` and `adaptive` are 1 on the prediction's error (sigma_t^2 for `score`, which
            is 1 on that of eps).
        parameterization: what the network predicts.
        process: the forward process.
        t: times [B], t > 0.
    """
    if isinstance(config, SimpleWeighting | AdaptiveWeighting):
        unit = torch.ones_like(process.log_snr(t))
        return unit * process.sigma(t) ** 2 if parameterization.kind == "score" else unit
    return x0_weights(config, parameterization.sigma_data, process, t) / x0_error_ratio(parameterization, process, t)


def x0_weights(config: WeightingConfig, sigma_data: float, process: Process, t: Tensor) -> Tensor:
    """lambda(t) on the squared error of x_0, float64 [B].

    - `vlb`: the mean over t of the weighted squared error of eps is, in nats, the part of the bound that depends on
      theta. In a chain it is T beta_t / (2 (1 - beta_t) sigma_t^2) on eps, equation (7) with Sigma_theta = beta_t (Ho
      et al. 2020, equation 12), which is T alpha_{t-1}^2 beta_t / (2 sigma_t^4) on x_0; in continuous time, its limit
      -(t_max - t_min) (dSNR/dt) / 2.
    - `likelihood`: lambda = g^2 in (11), halved: the bound on the reverse SDE's likelihood (Song, Durkan, Murray &
      Ermon 2021, theorem 1), with g^2 = beta(t / T) = T beta_t in a chain; in continuous time it is `vlb`.
    - `snr`: SNR, which is 1 on eps (Salimans & Ho, 2022).
    - `min_snr`: min(SNR, gamma) (Hang et al. 2023).
    - `p2`: (k + SNR)^-gamma on eps (Choi et al. 2022).
    - `edm`: (s^2 + sigma_data^2) / (s sigma_data)^2 with s = edm_sigma (Karras et al. 2022).
    - `sigmoid`: sigmoid(bias - log_snr) on eps (Hoogeboom et al. 2024).

    Args:
        config: which weighting, `simple` and `adaptive` excepted.
        sigma_data: standard deviation of the data that `edm` assumes.
        process: the forward process.
        t: times [B], t > 0.
    """
    log_snr = process.log_snr(t)
    snr = torch.exp(log_snr)
    match config:
        case VlbWeighting() | LikelihoodWeighting():
            return _bound_weights(config, process, t)
        case MinSnrWeighting(gamma=gamma):
            return torch.clamp(snr, max=gamma)
        case P2Weighting(k=k, gamma=gamma):
            return snr * (k + snr) ** -gamma
        case EdmWeighting():
            return snr + sigma_data**-2
        case SigmoidWeighting(bias=bias):
            return snr * torch.sigmoid(bias - log_snr)
        case _:  # snr; simple and adaptive have no weight of x_0's error
            return snr


def _bound_weights(config: VlbWeighting | LikelihoodWeighting, process: Process, t: Tensor) -> Tensor:
    """The two likelihood bounds' weights on the error of x_0, in nats per unit of (t - t_min) / (t_max - t_min)."""
    log_snr = process.log_snr(t)
    if not isinstance(process, Chain):
        return -(process.t_max - process.t_min) * torch.exp(log_snr) * process.dlogsnr_dt(t) / 2
    beta = transition_variance(process, t - 1, t)
    alpha = process.alpha(t - 1) if isinstance(config, VlbWeighting) else process.alpha_at(log_snr)
    return process.num_steps * alpha**2 * beta / (2 * process.sigma_at(log_snr) ** 4)


class LogVariance(nn.Module):
    """u(log_snr) of the adaptive weighting (Karras et al. 2024, equation 21).

    The loss error exp(-u) + u is least at u = log E[error | log_snr], where every noise level contributes equally. u is
    piecewise linear between `knots` evenly spaced log-SNRs and constant beyond them; it starts at 0.

    Args:
        config: number of knots.
        process: the knots cover its log-SNR range, cut to [-20, 20].
    """

    def __init__(self, config: AdaptiveWeighting, process: Process) -> None:
        super().__init__()
        ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
        self.low, self.high = (float(end) for end in ends.clamp(-20, 20))
        self.values = nn.Parameter(torch.zeros(config.knots))

    def forward(self, log_snr: Tensor) -> Tensor:
        """u at log_snr, float64 [B]; returns float32 [B] on the device of the parameters."""
        last = len(self.values) - 1
        place = ((log_snr - self.low) / (self.high - self.low)).clamp(0, 1) * last
        left = torch.floor(place).long().clamp(max=last - 1).to(self.values.device)
        fraction = place.to(self.values) - left
        return self.values[left] * (1 - fraction) + self.values[left + 1] * fraction
