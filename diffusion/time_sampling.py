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

    `uniform`: independent. `stratified`: u_i = (perm(i) + v_i) / B with a random permutation and v_i uniform on [0, 1),
    so every t keeps probability 1 / T while the batch covers 1..T evenly. A batch mean's error falls as B^-3/2; with
    one offset v for all rows (Kingma et al. 2021, appendix I.1) it would as B^-1.

    Returns:
        int64 [batch_size].
    """
    if config.kind == "uniform":
        u = generator.random(batch_size)
    else:
        u = (generator.permutation(batch_size) + generator.random(batch_size)) / batch_size
    return np.minimum(np.floor(u * num_steps).astype(np.int64), num_steps - 1) + 1  # u may round up to 1
