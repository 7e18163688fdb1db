"""Claim 16: post-hoc EMA."""

from collections.abc import Iterator

import numpy as np

from diffusion import ema
from diffusion.verify.claims.check import Check


def posthoc_ema(quick: bool) -> Iterator[Check]:
    """Claim 16: two tracks (sigma_rel 0.05, 0.10) of 16 even snapshots reconstruct averages of other widths.

    The track of the rows of the identity matrix is its own profile, so the reconstruction is compared with the profile
    that the recursion should have had; the closed form must give the same error.
    """
    steps = 400 if quick else 1600
    every = steps // 16
    tracks = [ema.gamma_from_sigma_rel(sigma_rel) for sigma_rel in (0.05, 0.10)]
    profiles = np.concatenate([ema.track(np.eye(steps), gamma, every) for gamma in tracks])
    snapshots = np.tile(np.arange(every, steps + 1, every), 2), np.repeat(tracks, 16)
    for sigma_rel, expected, tolerance in (
        (0.06, 0.0, 0.01),
        (0.075, 0.0, 0.01),
        (0.12, 0.0, 0.01),
        (0.15, 0.0, 0.01),
        (0.20, 0.023, 0.0005),
    ):
        gamma = ema.gamma_from_sigma_rel(sigma_rel)
        weights = ema.posthoc_weights(*snapshots, steps, gamma)
        target = ema.step_weights(steps, gamma)
        error = float(np.linalg.norm(weights @ profiles - target) / np.linalg.norm(target))
        closed_form = ema.reconstruction_error(weights, *snapshots, steps, gamma)
        yield Check(f"sigma_rel {sigma_rel}: L2 error of the recursion's profile", error, expected, tolerance)
        yield Check(f"sigma_rel {sigma_rel}: that in closed form over it", closed_form / error, 1.0, 0.005)
