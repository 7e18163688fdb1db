"""The step-level batching engine: rows of different requests share network evaluations.

A request is a set of images, split into parts of at most `max_rows / MAX_ACTIVE_PARTS` rows; each part is one solver.
An iteration gathers the rows that the active parts want, evaluates the network ONCE on them, and feeds each part its
own rows of the output; requests join and leave between iterations. Parts take turns, the longest-waiting first, and a
request has at most MAX_ACTIVE_PARTS active ones: a large one can fill a batch but cannot crowd out a small one.

Noise is keyed by (seed, image) and no solver sees another's rows, so an image does not depend on the requests that
share its batches, up to the rounding of a GEMM of another batch size (about 1e-6 per evaluation).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from diffusion.solvers import Query
from sampler.requests import Part, Request, Start, select_parts

Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]

MAX_ACTIVE_PARTS = 4  # of one request


class BusyError(RuntimeError):
    """The engine has reached its limit of unfinished images; try again later."""


class Batcher:
    """The batching engine, on a thread of its own.

    Args:
        evaluate: the network's raw output for x [B, C, H, W], t [B] and labels [B], or None where no row has one.
        max_rows: largest batch of one evaluation.
        max_images: limit of unfinished images; beyond it `submit` raises BusyError.
    """

    def __init__(self, evaluate: Evaluate, max_rows: int = 64, max_images: int = 4096) -> None:
        """Start the thread."""
        self._evaluate = evaluate
        self._max_rows = max_rows
        self._max_images = max_images
        self._part_rows = max(1, max_rows // MAX_ACTIVE_PARTS)
        self._wake = threading.Condition()
        self._unfinished: list[Request] = []
        self._arrivals: list[Request] = []
        self._active: list[Part] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is running."""
        return self._thread.is_alive()

    def submit(self, start: Start, images: Sequence[int]) -> Future[Tensor]:
        """Request images; cancelling the future removes their rows before the next evaluation.

        The future resolves to float32 [len(images), C, H, W].

        Args:
            start: makes the solver of a part of the images.
            images: image indices, at least one.

        Raises:
            BusyError: max_images would be exceeded.
            RuntimeError: the engine is closed.
        """
        request = Request(start, images, self._part_rows)
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._unfinished = [r for r in self._unfinished if not r.future.done()]
            held = sum(r.size for r in self._unfinished)
            if held + request.size > self._max_images:
                raise BusyError(f"{held} images are in progress and at most {self._max_images} may be; try again later")
            self._unfinished.append(request)
            self._arrivals.append(request)
            self._wake.notify()
        return request.future

    def close(self) -> None:
        """Stop after the evaluation in progress; unfinished requests are cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._join_arrivals():
                    self._evaluate_batch()
        finally:
            with self._wake:
                self._closed = True
            for request in self._unfinished:
                request.future.cancel()

    def _join_arrivals(self) -> bool:
        """Wait for work and start the requests that have arrived; False once closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._arrivals or self._active or self._closed)
            arrivals, self._arrivals = self._arrivals, []
        for request in arrivals:
            for _ in range(MAX_ACTIVE_PARTS):
                self._start_part(request)
        self._active = [part for part in self._active if not part.request.future.done()]
        return not self._closed

    def _start_part(self, request: Request) -> None:
        try:
            part = request.next_part()
        except Exception as error:  # noqa: BLE001 - an error of a solver fails its own request alone
            request.fail(error)
            return
        if part is not None:
            self._active.append(part)

    def _evaluate_batch(self) -> None:
        """One network evaluation; its errors fail all requests in the batch, any other error only its own request."""
        batch, self._active = select_parts(self._active, self._max_rows)
        if not batch:
            return
        try:
            output = self._evaluate(*concatenate([part.query for part in batch]))
        except Exception as error:  # noqa: BLE001 - an error of the network fails the requests in the batch
            for part in batch:
                part.request.fail(error)
            return
        for part, rows in zip(batch, output.split([len(p.query.x) for p in batch]), strict=True):
            self._feed(part, rows)

    def _feed(self, part: Part, output: Tensor) -> None:
        try:
            more = part.feed(output)
        except Exception as error:  # noqa: BLE001 - NonFiniteError, or an error of the solver
            part.request.fail(error)
            return
        if more:
            self._active.append(part)
        else:
            self._start_part(part.request)


def concatenate(queries: Sequence[Query]) -> Query:
    """The rows of several queries to one model, as one query; either all rows have labels or none has."""
    labels = [query.label for query in queries if query.label is not None]
    return Query(
        torch.cat([query.x for query in queries]),
        torch.cat([query.t for query in queries]),
        torch.cat(labels) if labels else None,
    )
