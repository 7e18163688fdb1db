"""Ancestral sampling: the reverse chain p_theta(x_s | x_t) of equations (5)-(6) (Ho et al. 2020, algorithm 2)."""

from torch import Tensor

from diffusion.config import Ancestral
from diffusion.denoiser import Denoiser
from diffusion.process.kernels import learned_reverse_variance, posterior, reverse_variance
from diffusion.solvers.base import Noise, Steps
from diffusion.solvers.grid import GridSolver
from diffusion.tensors import to_floats


class AncestralSolver(GridSolver):
    """x_s = mu_theta(x_t, t) + sqrt(Sigma_theta) z, with z = 0 in the last step, to data.

    mu_theta is the mean of the posterior q(x_s | x_t, x_0) at the estimate of x_0, and Sigma_theta the process's
    `reverse_variance`, for any s < t. Over all T steps of a chain it is DDPM's sampler. Weak order 1; one evaluation a
    step.
    """

    def __init__(self, config: Ancestral, denoiser: Denoiser, noise: Noise, label: Tensor | None = None) -> None:
        super().__init__(config, config.num_steps, denoiser, noise, label)

    def steps(self) -> Steps:
        """A draw from p_theta(x_s | x_t) for each step."""
        s, t, kind = self.times[1:], self.times[:-1], self.process.reverse_variance
        q = posterior(self.process, s, t)
        means = list(zip(to_floats(q.coef_x_t), to_floats(q.coef_x_0), strict=True))
        stds = None if kind == "learned" else to_floats(reverse_variance(self.process, s, t, kind).sqrt())
        for i, (at_t, at_s) in enumerate(self.intervals()):
            estimate = yield self.wanted(at_t)
            coef_x_t, coef_x_0 = means[i]
            self.x = coef_x_t * self.x + coef_x_0 * estimate.x_0
            if at_s.t == 0:
                return
            if stds is None:
                assert estimate.interpolation is not None, "a learned variance comes with the output"
                at = slice(i, i + 1)
                std = learned_reverse_variance(self.process, s[at], t[at], estimate.interpolation).sqrt().to(self.x)
            else:
                std = stds[i]
            self.x = self.x + std * self.noise.draw(i + 1).to(self.x)
