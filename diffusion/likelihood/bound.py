"""What the discrete and the continuous variational bound share: their three terms, and how noise is laid out.

An estimate takes noise eps [B, K + R, ...]: K draws per image for the diffusion term, at K steps or times, and R for
the reconstruction term. All results of a row depend on that row alone, so an evaluation may be cut into blocks
anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Vlb:
    """The three terms of a variational bound on -log p(x_0), for each image, float64 nats [B].

    Attributes:
        prior: KL(q(x_T | x_0) || p(x_T)).
        diffusion: the sum over steps, or the integral over time, of the KL between reverse kernels.
        reconstruction: E[-log p(x_0 | x_t)] at the least noise.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, prior + diffusion + reconstruction, float64 nats [B]."""
        return self.prior + self.diffusion + self.reconstruction

    def checked(self) -> "Vlb":
        """This bound, if all of its terms are finite.

        Raises:
            ArithmeticError: a term that is not finite, naming the term and the rows.
        """
        for name in ("prior", "diffusion", "reconstruction"):
            bad = (~getattr(self, name).isfinite()).nonzero().flatten().tolist()
            if bad:
                raise ArithmeticError(
                    f"the bound's {name} term is not finite for rows {bad[:8]}: the network gives NaN or infinity"
                )
        return self


def split_noise(eps: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Split eps [B, draws + R, ...] into the noise of the diffusion term and that of the reconstruction term.

    Raises:
        ValueError: nothing is left for the reconstruction term.
    """
    if eps.shape[1] <= draws:
        raise ValueError(f"eps holds {eps.shape[1]} draws an image; allowed: at least {draws + 1}, one more than steps")
    return eps[:, :draws], eps[:, draws:]


def per_draw(
    term: Callable[[Tensor, Tensor, Tensor | None], Tensor], x_0: Tensor, eps: Tensor, label: Tensor | None
) -> Tensor:
    """Evaluate a term for every draw of every row.

    Args:
        term: maps x_0 [B K, ...], eps of the same shape and labels [B K] or None to values [B K].
        x_0: data [B, ...].
        eps: noise [B, K, ...].
        label: int64 [B], or None.

    Returns:
        The term of each draw, [B, K].
    """
    draws = eps.shape[1]
    labels = None if label is None else label.repeat_interleave(draws)
    return term(x_0.repeat_interleave(draws, dim=0), eps.flatten(0, 1), labels).reshape(-1, draws)


def weighted_mean(terms: Tensor, weights: Tensor | float) -> Tensor:
    """The mean over each row's draws of weight times term.

    Args:
        terms: [B, K].
        weights: 1 / probability of each draw, [B, K], or one number for all.

    Returns:
        [B], in the dtype of `terms`.
    """
    weighted = terms * (weights.to(terms) if isinstance(weights, Tensor) else weights)
    return weighted.mean(1)
