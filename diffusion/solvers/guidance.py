"""Guidance: away from what a weaker view of the data says.

Both kinds are one formula on the networks' predictions, `guided`. For a given x_t all predictions are affine in one
another with the same offset, so weights that sum to one mean the same whatever is predicted. A learned reverse variance
is not guided but the strong view's, as in DiT (Peebles & Xie, 2023): it is an interpolation, and beyond the two views
there may be nothing to interpolate.

- Classifier-free (Ho & Salimans, 2022): the weak view is the same network without the label. It costs rows, so it wraps
  a solver: each of its rows is asked for twice.
- Autoguidance (Karras et al., 2024): the weak view is a smaller or less trained network. It wraps a denoiser.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Query, Solver


def guided(strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """Weak + scale (strong - weak): 0 is the weak view, 1 the strong one, more goes beyond it."""
    return weak + scale * (strong - weak)


def guided_output(denoiser: Denoiser, strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """The raw output of `guided` predictions, with the strong view's learned variance if there is one."""
    (strong, variance), (weak, _) = denoiser.split(strong), denoiser.split(weak)
    prediction = guided(strong, weak, scale)
    return prediction if variance is None else torch.cat([prediction, variance], dim=1)


class ClassifierFreeSolver:
    """A solver whose every row is evaluated with its label and without.

    Args:
        solver: of conditional rows.
        denoiser: the solver's, with a label that stands for none.
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
        """The solver's rows."""
        return self._solver.x

    def want(self) -> Query | None:
        """The solver's rows with their labels, then the same rows with the null label."""
        query = self._solver.want()
        if query is None:
            return None
        assert query.label is not None, "make_solver refuses guidance without labels"
        null = torch.full_like(query.label, self._null_label)
        return Query(torch.cat([query.x, query.x]), torch.cat([query.t, query.t]), torch.cat([query.label, null]))

    def feed(self, output: Tensor) -> None:
        """Combine the two halves."""
        half = len(output) // 2
        self._solver.feed(guided_output(self._denoiser, output[:half], output[half:], self._scale))


@dataclass(frozen=True)
class AutoguidedDenoiser(Denoiser):
    """A denoiser guided away from a weaker one of the same process.

    Attributes:
        guide: the weaker denoiser.
        scale: of the guidance.
    """

    guide: Denoiser | None = None
    scale: float = 1.0

    def output(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The guided output, as this denoiser's network would have given it; a guide without labels is told none."""
        assert self.guide is not None, "made by `autoguided`"
        has_labels = self.guide.null_label is not None or self.guide.needs_label
        strong = super().output(x_t, t, label)
        weak = self.guide.output(x_t, t, label if has_labels else None)
        return guided_output(self, strong, weak, self.scale)


def autoguided(denoiser: Denoiser, guide: Denoiser, scale: float) -> AutoguidedDenoiser:
    """The denoiser, guided away from `guide`.

    Raises:
        ValueError: the two do not predict the same thing of the same process, or their labels mean different classes.
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
