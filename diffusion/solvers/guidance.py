"""Guidance: away from what a weaker view of the data says.

Both kinds are one formula on the networks' outputs, `guided`. For a given x_t all predictions are affine in one another
with the same offset, so weights that sum to one mean the same whatever is predicted. A learned reverse variance is not
one of them and stays the strong view's: its interpolation means nothing beyond its two ends.

- Classifier-free (Ho & Salimans, 2022): the weak view is the same network without the label. It costs rows, so it wraps
  a solver: each of its rows is asked for twice.
- Autoguidance (Karras et al., 2024): the weak view is a smaller or less trained network. It wraps a denoiser.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.solvers.base import Query, Solver


def guided(strong: Tensor, weak: Tensor, scale: float, channels: int) -> Tensor:
    """Weak + scale (strong - weak): 0 is the weak view, 1 the strong one, more goes beyond it.

    Args:
        strong: raw output [B, C or 2 C, ...].
        weak: of the same shape.
        scale: of the guidance.
        channels: C, of the prediction; what follows is a learned variance's.
    """
    prediction = weak[:, :channels] + scale * (strong[:, :channels] - weak[:, :channels])
    return torch.cat([prediction, strong[:, channels:]], dim=1)


class ClassifierFreeSolver:
    """A solver whose every row is evaluated with its label and without.

    Args:
        solver: of conditional rows.
        scale: of the guidance.
        null_label: the label that stands for none.
    """

    def __init__(self, solver: Solver, scale: float, null_label: int) -> None:
        self._solver = solver
        self._scale = scale
        self._null_label = null_label

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
        self._solver.feed(guided(output[:half], output[half:], self._scale, self.x.shape[1]))


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
        weak = self.guide.output(x_t, t, label if has_labels else None)
        return guided(super().output(x_t, t, label), weak, self.scale, x_t.shape[1])


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
