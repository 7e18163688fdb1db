"""Checkpoints written in the background: training waits only for a copy in memory, a thread on each rank writes it."""
# torch.distributed has few type hints:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint.writer import save
from trainer.run.attempt import Fence
from trainer.run.journal import Journal


class AsyncCheckpointWriter:
    """Saves checkpoints in order, in a thread with its own process group, so that training's collectives go on."""

    def __init__(self) -> None:
        """Create the process group; collective, every rank must call it."""
        group = dist.new_group(backend="gloo")
        assert not isinstance(group, int), "every rank is in the group"
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []

    def save(
        self,
        checkpoints: Path,
        fragments: dict[str, Tensor],
        manifest: dict[str, Any],
        fence: Fence,
        done: Callable[[], None],
        journal: Journal | None = None,
    ) -> None:
        """Start writing a checkpoint; waits while two earlier ones are unfinished.

        Args:
            checkpoints: folder that holds one folder per step.
            fragments: this rank's fragments, copied to memory already.
            manifest: fields of the manifest, from `manifest_fields`.
            fence: tells whether this attempt is still in charge.
            done: called in the thread once the checkpoint is complete.
            journal: on rank 0, the run's journal.

        Raises:
            Exception: the error of an earlier checkpoint that failed.
        """
        self.make_room()

        def work() -> None:
            save(checkpoints, fragments, manifest, fence, self._group, journal)
            done()

        self._pending.append(self._thread.submit(work))

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is unfinished."""
        return not all(pending.done() for pending in self._pending)

    def make_room(self) -> None:
        """Wait until at most one checkpoint is unfinished.

        Raises:
            Exception: the error of an earlier checkpoint that failed.
        """
        while len(self._pending) > 1 or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()

    def close(self) -> None:
        """Wait for unfinished checkpoints, then end the thread.

        Raises:
            Exception: the error of a checkpoint that failed.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def wait(self) -> None:
        """Wait until every checkpoint that was started is complete.

        Raises:
            Exception: the error of a checkpoint that failed.
        """
        while self._pending:
            self._pending.pop(0).result()
