"""What the discrete and the continuous bound share: their three terms, and how draws are laid out.

An estimate takes eps [B, K + R, ...]: K draws an image for the diffusion term, at K steps or times, and R for the
reconstruction term. Every number of a row comes from that row alone, so blocks of images may be cut anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Vlb:
    """The three terms of the bound per image, float64 nats [B]."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """prior + diffusion + reconstruction."""
        return self.prior + self.diffusion + self.reconstruction

    def checked(self) -> "Vlb":
        """Itself, once all terms are numbers.

        Raises:
            ArithmeticError: a term that is not finite.
        """
        for name in ("prior", "diffusion", "reconstruction"):
            bad = (~getattr(self, name).isfinite()).nonzero().flatten().tolist()
            if bad:
                raise ArithmeticError(
                    f"the bound's {name} term is not finite for rows {bad[:8]}: the network gives NaN or infinity"
                )
        return self


def split_noise(eps: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """eps [B, draws + R, ...] as that of the diffusion term and that of the reconstruction term.

    Raises:
        ValueError: nothing is left for the reconstruction term.
    """
    if eps.shape[1] <= draws:
        raise ValueError(f"eps holds {eps.shape[1]} draws an image; allowed: at least {draws + 1}, one more than steps")
    return eps[:, :draws], eps[:, draws:]


def per_draw(
    term: Callable[[Tensor, Tensor, Tensor | None], Tensor], x_0: Tensor, eps: Tensor, label: Tensor | None
) -> Tensor:
    """term(x_0, eps, label) of every draw eps [B, K, ...] of each row, [B, K]."""
    draws = eps.shape[1]
    labels = None if label is None else label.repeat_interleave(draws)
    return term(x_0.repeat_interleave(draws, dim=0), eps.flatten(0, 1), labels).reshape(-1, draws)


def weighted_mean(terms: Tensor, weights: Tensor | float) -> Tensor:
    """The mean over each row's draws of weight times term, float64 [B]; terms [B, K]."""
    weighted = terms * (weights.to(terms) if isinstance(weights, Tensor) else weights)
    return weighted.mean(1)
