"""The step-level batching engine: rows of different requests share network evaluations.

A request is a set of images, split into parts of at most `max_rows / PARTS_AT_ONCE` rows; each part is one solver.
An iteration takes what the parts in progress want, evaluates the network ONCE on all those rows, and feeds each part
its own answer; requests join and leave between iterations. Parts take turns, the longest-waiting first, and a request
has at most PARTS_AT_ONCE of them in progress: a large one fills the evaluations but cannot crowd out a small one.

Noise is keyed by (seed, image) and no solver sees another's rows, so an image never depends on who shares its
evaluations, up to the rounding by which a GEMM of another batch size differs (about 1e-6 per evaluation).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from diffusion.solvers import Query
from sampler.requests import Part, Request, Start, choose

Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]

PARTS_AT_ONCE = 4


class Busy(RuntimeError):
    """The engine holds as many unfinished images as it may; try again later."""


class Batcher:
    """Runs the engine on a thread of its own.

    Args:
        evaluate: the network's raw output for x [B, C, H, W], t [B] and labels [B], or None where no row has one.
        max_rows: rows of one evaluation.
        max_images: unfinished images held at once; beyond them `submit` raises Busy.
    """

    def __init__(self, evaluate: Evaluate, max_rows: int = 64, max_images: int = 4096) -> None:
        """Start the thread."""
        self._evaluate = evaluate
        self._max_rows = max_rows
        self._max_images = max_images
        self._part_rows = max(1, max_rows // PARTS_AT_ONCE)
        self._wake = threading.Condition()
        self._unfinished: list[Request] = []
        self._arrivals: list[Request] = []
        self._active: list[Part] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine still works on requests."""
        return self._thread.is_alive()

    def submit(self, start: Start, images: Sequence[int]) -> Future[Tensor]:
        """Ask for images; cancelling the future takes their rows out before the next evaluation.

        Args:
            start: makes the solver of some of the images.
            images: image indices, at least one.

        Raises:
            Busy: max_images would be exceeded.
            RuntimeError: the engine is closed.
        """
        request = Request(start, images, self._part_rows)
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._unfinished = [r for r in self._unfinished if not r.future.done()]
            held = sum(r.size for r in self._unfinished)
            if held + request.size > self._max_images:
                raise Busy(f"{held} images are in progress and at most {self._max_images} may be; try again later")
            self._unfinished.append(request)
            self._arrivals.append(request)
            self._wake.notify()
        return request.future

    def close(self) -> None:
        """Stop after the evaluation in progress and cancel what is unfinished."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._join_arrivals():
                    self._iterate()
        finally:
            with self._wake:
                self._closed = True
            for request in self._unfinished:
                request.future.cancel()

    def _join_arrivals(self) -> bool:
        """Wait for work and start what has arrived; False once closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._arrivals or self._active or self._closed)
            arrivals, self._arrivals = self._arrivals, []
        for request in arrivals:
            for _ in range(PARTS_AT_ONCE):
                self._start_part(request)
        self._active = [part for part in self._active if not part.request.future.done()]
        return not self._closed

    def _start_part(self, request: Request) -> None:
        try:
            part = request.next_part()
        except Exception as error:  # noqa: BLE001 - whatever a solver raises is its own request's
            request.fail(error)
            return
        if part is not None:
            self._active.append(part)

    def _iterate(self) -> None:
        """One network evaluation; an error of the network fails the requests that share it, any other only its own."""
        turn, self._active = choose(self._active, self._max_rows)
        if not turn:
            return
        try:
            output = self._evaluate(*joined([part.query for part in turn]))
        except Exception as error:  # noqa: BLE001 - whatever the network raises is for those who asked
            for part in turn:
                part.request.fail(error)
            return
        for part, rows in zip(turn, output.split([len(p.query.x) for p in turn]), strict=True):
            self._feed(part, rows)

    def _feed(self, part: Part, output: Tensor) -> None:
        try:
            more = part.feed(output)
        except Exception as error:  # noqa: BLE001 - NonFinite, or whatever a solver raises
            part.request.fail(error)
            return
        if more:
            self._active.append(part)
        else:
            self._start_part(part.request)


def joined(queries: Sequence[Query]) -> Query:
    """The rows of several queries to one model, whose rows all have labels or all have none."""
    labels = [query.label for query in queries if query.label is not None]
    return Query(
        torch.cat([query.x for query in queries]),
        torch.cat([query.t for query in queries]),
        torch.cat(labels) if labels else None,
    )
