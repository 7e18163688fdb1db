"""What the engine schedules: requests split into parts, each part one solver, and the choice of who goes next.

A part asks for rows and takes the network's answer; when all parts of a request are done, its future resolves. Nothing
here runs a thread or a network (see `batcher.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from diffusion.solvers import Query, Sampler

Start = Callable[[Sequence[int]], Sampler]


class NonFinite(ArithmeticError):
    """The network answered NaN or infinity for this request's rows."""


class Request:
    """Images asked for together.

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
            if self._claim():
                self.future.set_result(images)

    def fail(self, error: Exception) -> None:
        """Resolve the future with an error, unless it is resolved or cancelled already."""
        if self._claim():
            self.future.set_exception(error)

    def _claim(self) -> bool:
        """Whether the future still waits for its result; once claimed it cannot be cancelled."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()


class Part:
    """Some of a request's images in progress: a solver, and the rows it wants evaluated next."""

    def __init__(self, request: Request, index: int, solver: Sampler) -> None:
        """Ask the solver for its first rows."""
        query = solver.want()
        assert query is not None, "a solver takes at least one step"
        self.request = request
        self.query: Query = query
        self._index = index
        self._solver = solver

    def feed(self, output: Tensor) -> bool:
        """Advance by one evaluation; the last one hands the images to the request.

        Returns:
            Whether there is more to evaluate.

        Raises:
            NonFinite: the output holds NaN or infinity.
        """
        if not bool(torch.isfinite(output).all()):
            raise NonFinite("the model produced NaN or infinity for these images")
        self._solver.feed(output)
        query = self._solver.want()
        if query is None:
            self.request.finish(self._index, self._solver.x)
            return False
        self.query = query
        return True


def choose(parts: Sequence[Part], max_rows: int) -> tuple[list[Part], list[Part]]:
    """The parts of the next evaluation, in order while they fit, and the others.

    The first one always goes: in classifier-free guidance a part asks for twice its rows.
    """
    turn: list[Part] = []
    others: list[Part] = []
    room = max_rows
    for part in parts:
        rows = len(part.query.x)
        if rows <= room or not turn:
            turn.append(part)
            room -= rows
        else:
            others.append(part)
    return turn, others
