"""Checkpoints written beside training: the loop waits for a copy to memory, a thread of each rank does the rest."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint.writer import save
from trainer.run.attempt import Fence


class Writer:
    """Saves in a thread, in order, with a process group of its own so that training's collectives go on."""

    def __init__(self) -> None:
        """Make the group; collective."""
        group = dist.new_group(backend="gloo")
        assert not isinstance(group, int), "every rank is in it"
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []

    def save(
        self,
        checkpoints: Path,
        fragments: dict[str, Tensor],
        stated: dict[str, Any],
        fence: Fence,
        done: Callable[[], None],
    ) -> None:
        """Begin to `save`, at most two at a time; `done` is called in the thread when this one is complete.

        Raises:
            Exception: whatever went wrong with one before.
        """
        self.make_room()

        def work() -> None:
            save(checkpoints, fragments, stated, fence, self._group)
            done()

        self._pending.append(self._thread.submit(work))

    def make_room(self) -> None:
        """Return once at most one is under way.

        Raises:
            Exception: whatever went wrong with one before.
        """
        while len(self._pending) > 1 or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()

    def close(self) -> None:
        """Wait, and let the thread go.

        Raises:
            Exception: whatever went wrong.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def wait(self) -> None:
        """Return once what was begun is complete.

        Raises:
            Exception: whatever went wrong with it.
        """
        while self._pending:
            self._pending.pop(0).result()
