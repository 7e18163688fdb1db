"""How the step t of each training row is drawn.

A draw is made for the GLOBAL batch from uniforms that do not depend on the number of workers; a rank keeps its rows.
"""

import numpy as np
from numpy.typing import NDArray

from diffusion.config import TimeSamplingConfig


def draw_timesteps(
    config: TimeSamplingConfig, generator: np.random.Generator, batch_size: int, num_steps: int
) -> NDArray[np.int64]:
    """Steps t in 1..T for one global batch.

    `uniform`: independent. `stratified`: u_i = (perm(i) + u) / B with one shared offset u and a random permutation, so
    every t keeps probability 1 / T while the batch covers 1..T evenly (Kingma et al. 2021, appendix I.1).

    Returns:
        int64 [batch_size].
    """
    if config.kind == "uniform":
        u = generator.random(batch_size)
    else:
        u = (generator.permutation(batch_size) + generator.random()) / batch_size
    return np.minimum(np.floor(u * num_steps).astype(np.int64), num_steps - 1) + 1  # u may round up to 1
