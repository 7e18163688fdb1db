"""Power-function EMA (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models").

theta_ema(t) weighs theta(tau) in proportion to tau^gamma, so the profile's width is a fixed fraction sigma_rel of the
training so far: no decay has to be tuned to the length of a run. Sharding is the trainer's concern.
"""

import numpy as np


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent whose profile has relative standard deviation sigma_rel.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); the largest real root.

    Raises:
        ValueError: sigma_rel outside (0, 0.28], where no profile exists.
    """
    if not 0 < sigma_rel <= 0.28:
        raise ValueError(f"sigma_rel = {sigma_rel}; allowed: above 0, at most 0.28")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(step: int, gamma: float) -> float:
    """beta = (1 - 1 / step)^(gamma + 1) of theta_ema <- beta theta_ema + (1 - beta) theta, after step `step` >= 1."""
    return (1 - 1 / step) ** (gamma + 1)
