"""The engine's units of work: requests, split into parts of one solver each, and the choice of the parts to run next.

A part asks for rows and is fed the network's output; when all parts of a request are done, its future resolves. Nothing
here runs a thread or a network (see `batcher.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from diffusion.solvers import Query, Sampler

Start = Callable[[Sequence[int]], Sampler]


class NonFiniteError(ArithmeticError):
    """The network's output holds NaN or infinity in this request's rows."""


class Request:
    """Images requested together.

    Attributes:
        future: resolves to float32 [size, C, H, W], in the order of the images.
        size: number of images.
    """

    def __init__(self, start: Start, images: Sequence[int], rows: int) -> None:
        """Split `images` into parts of at most `rows`.

        Raises:
            ValueError: no images.
        """
        if not images:
            raise ValueError("images: none given; allowed: at least one")
        self.future: Future[Tensor] = Future()
        self.size = len(images)
        self._start = start
        self._waiting = deque(enumerate(images[i : i + rows] for i in range(0, len(images), rows)))
        self._count = len(self._waiting)
        self._results: dict[int, Tensor] = {}

    def next_part(self) -> "Part | None":
        """Start the next part; None when all have been started."""
        if not self._waiting:
            return None
        index, images = self._waiting.popleft()
        return Part(self, index, self._start(images))

    def finish(self, index: int, x: Tensor) -> None:
        """Keep one part's images; the last part resolves the future."""
        self._results[index] = x
        if len(self._results) == self._count:
            images = torch.cat([self._results[i] for i in range(self._count)])
            if self._set_running():
                self.future.set_result(images)

    def fail(self, error: Exception) -> None:
        """Resolve the future with an error, unless it is resolved or cancelled already."""
        if self._set_running():
            self.future.set_exception(error)

    def _set_running(self) -> bool:
        """Mark the future as running, after which it cannot be cancelled; False if it is done or cancelled already."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()


class Part:
    """Some of a request's images: their solver, and its next query, the rows it wants evaluated."""

    def __init__(self, request: Request, index: int, solver: Sampler) -> None:
        """Ask the solver for its first rows."""
        query = solver.want()
        assert query is not None, "a solver takes at least one step"
        self.request = request
        self.query: Query = query
        self._index = index
        self._solver = solver

    def feed(self, output: Tensor) -> bool:
        """Advance by one evaluation; after the last one the request receives the images.

        Returns:
            Whether more evaluations are needed.

        Raises:
            NonFiniteError: the output holds NaN or infinity.
        """
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteError("the model produced NaN or infinity for these images")
        self._solver.feed(output)
        query = self._solver.want()
        if query is None:
            self.request.finish(self._index, self._solver.x)
            return False
        self.query = query
        return True


def select_parts(parts: Sequence[Part], max_rows: int) -> tuple[list[Part], list[Part]]:
    """The parts of the next batch, in order as far as they fit in `max_rows`, and the rest.

    The first part is always taken: with classifier-free guidance it may need more rows than fit.
    """
    batch: list[Part] = []
    rest: list[Part] = []
    rows_left = max_rows
    for part in parts:
        rows = len(part.query.x)
        if rows <= rows_left or not batch:
            batch.append(part)
            rows_left -= rows
        else:
            rest.append(part)
    return batch, rest
