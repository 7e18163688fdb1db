"""Guidance: extrapolation away from a weaker prediction (Ho & Salimans, 2022; Karras et al., 2024).

Both kinds apply one formula, `guided`, to the networks' predictions. At a given x_t all parameterizations are affine in
one another with the same offset, so a combination whose weights sum to one means the same in all of them. A learned
reverse variance is not extrapolated but taken from the strong prediction, as in DiT (Peebles & Xie, 2023): it is an
interpolation, and need not make sense beyond its two ends.

- Classifier-free guidance: the weak prediction is that of the same network without the label. Every row is evaluated
  twice, so it wraps a solver.
- Autoguidance: the weak prediction is that of a smaller or less trained network. It wraps a denoiser.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Query, Solver


def guided(strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """weak + scale (strong - weak): scale 0 is the weak prediction, 1 the strong one, more extrapolates beyond it.

    Args:
        strong: [B, ...].
        weak: the shape of `strong`.
        scale: of the guidance.
    """
    return weak + scale * (strong - weak)


def guided_output(denoiser: Denoiser, strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """The raw output of the `guided` prediction, with the strong one's learned variance if there is one."""
    (strong, variance), (weak, _) = denoiser.split(strong), denoiser.split(weak)
    prediction = guided(strong, weak, scale)
    return prediction if variance is None else torch.cat([prediction, variance], dim=1)


class ClassifierFreeSolver:
    """A solver whose rows are evaluated twice each, with their label and without.

    Args:
        solver: for rows with labels.
        denoiser: that of the solver; it has a null label.
        scale: of the guidance.
    """

    def __init__(self, solver: Solver, denoiser: Denoiser, scale: float) -> None:
        assert denoiser.null_label is not None, "make_solver refuses guidance without a label for none"
        self._solver = solver
        self._denoiser = denoiser
        self._scale = scale
        self._null_label = denoiser.null_label

    @property
    def x(self) -> Tensor:
        """The solver's current rows [B, C, H, W]."""
        return self._solver.x

    def want(self) -> Query | None:
        """The solver's rows with their labels, then the same rows with the null label, 2 B rows; None at the end."""
        query = self._solver.want()
        if query is None:
            return None
        assert query.label is not None, "make_solver refuses guidance without labels"
        null = torch.full_like(query.label, self._null_label)
        return Query(torch.cat([query.x, query.x]), torch.cat([query.t, query.t]), torch.cat([query.label, null]))

    def feed(self, output: Tensor) -> None:
        """Take the outputs [2 B, ...] and pass their guided combination to the solver."""
        half = len(output) // 2
        self._solver.feed(guided_output(self._denoiser, output[:half], output[half:], self._scale))


@dataclass(frozen=True)
class AutoguidedDenoiser(Denoiser):
    """A denoiser that is guided away from a weaker one for the same process.

    Attributes:
        guide: the weaker denoiser.
        scale: of the guidance.
    """

    guide: Denoiser | None = None
    scale: float = 1.0

    def output(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The guided raw output, in this denoiser's own parameterization; a guide without labels is not given any."""
        assert self.guide is not None, "made by `autoguided`"
        strong = super().output(x_t, t, label)
        weak = self.guide.output(x_t, t, label if self.guide.has_labels else None)
        return guided_output(self, strong, weak, self.scale)


def autoguided(denoiser: Denoiser, guide: Denoiser, scale: float) -> AutoguidedDenoiser:
    """The denoiser, guided away from `guide`.

    Args:
        denoiser: the strong one.
        guide: the weak one.
        scale: 0 is the guide, 1 the denoiser, more extrapolates.

    Raises:
        ValueError: the two predict different quantities or have different processes, or their labels mean different
            classes.
    """
    own, other = _meaning(denoiser), _meaning(guide)
    if own != other:
        raise ValueError(f"guidance.guide: predicts {other}, the model {own}; allowed: a guide of the same kind")
    if None not in (denoiser.null_label, guide.null_label) and denoiser.null_label != guide.null_label:
        raise ValueError(
            f"guidance.guide: has {guide.null_label} classes, the model {denoiser.null_label}; allowed: a guide with "
            "the same classes, or without"
        )
    log_snr, guide_log_snr = (d.process.log_snr(d.process.step_times()) for d in (denoiser, guide))
    if not torch.allclose(log_snr, guide_log_snr):
        raise ValueError("guidance.guide: has another noise schedule than the model; allowed: a guide with the same")
    return AutoguidedDenoiser(
        denoiser.network,
        denoiser.process,
        denoiser.prediction,
        denoiser.sigma_data,
        denoiser.null_label,
        denoiser.needs_label,
        guide,
        scale,
    )


def _meaning(denoiser: Denoiser) -> str:
    variance = " with a learned variance" if denoiser.learned_variance else ""
    sigma_data = f" for sigma_data = {denoiser.sigma_data:g}" if denoiser.prediction == "edm" else ""
    return f"{denoiser.prediction}{sigma_data}{variance} over {denoiser.process.num_steps} steps"
