"""Losses, gradients and weights that are not finite, and what is said of them."""

import math

HINT = "A lower optim.lr or optim.max_grad_norm usually helps"


class NonFiniteError(RuntimeError):
    """A loss, gradient or weight is NaN or infinite, at a step that has changed nothing; raised on every rank.

    It may be raised after the next step, of which nothing is kept.
    """

    def __init__(self, step: int, reason: str) -> None:
        """The step that was not finite, and how."""
        super().__init__(f"step {step}: {reason}")
        self.step = step


def require_finite(losses: list[float], step: int) -> None:
    """Raise if any rank's loss is NaN or infinite.

    Args:
        losses: one loss per rank.
        step: the current step, for the message.

    Raises:
        NonFiniteError: naming the step and the ranks.
    """
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        ranks = ", ".join(str(rank) for rank in bad)
        raise NonFiniteError(
            step, f"the loss is {losses[bad[0]]} on rank {ranks}; stopped before the optimizer step. {HINT}"
        )
