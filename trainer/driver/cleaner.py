"""Ray Train's cleaner of placement groups, which ends when its work is done.

Ray starts a detached actor for each controller, which frees the controller's placement group if the controller dies
while its job lives on, as a trial of a sweep may. Ray 2.60's never ends by itself: it calls `exit_actor` in a thread,
where that has no effect, and without a dashboard it never learns that the controller is dead.
"""

import os
import queue
from contextlib import suppress
from typing import Any

from ray._private.state import actors
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class EndingCleaner(PlacementGroupCleaner):
    """Ends its process once it was stopped, or the controller is dead and its placement group is removed."""

    def _monitor_loop(self) -> None:
        group = None
        try:
            while not self._stop_event.is_set():
                with suppress(queue.Empty):
                    group = self._pg_queue.get(timeout=self._check_interval_s)
                if actors(self._controller_actor_id).get("State", "DEAD") == "DEAD":
                    while not self._pg_queue.empty():
                        group = self._pg_queue.get()
                    self._cleanup_placement_group(group)
                    return
        finally:
            os._exit(0)


class EndingCleanerCallback(PlacementGroupCleanerCallback):
    """Starts an EndingCleaner; called in the controller's process."""

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401 - Ray's
        """Start it beside the controller."""
        placement_group_callback.PlacementGroupCleaner = EndingCleaner  # pyright: ignore[reportPrivateImportUsage]
        super().after_controller_start(train_run_context)


class Trainer(TorchTrainer):
    """A TorchTrainer that leaves no cleaner behind."""

    def _create_default_callbacks(self) -> list[Any]:
        """Ray's callbacks, with another cleaner."""
        return [
            EndingCleanerCallback() if isinstance(callback, PlacementGroupCleanerCallback) else callback
            for callback in super()._create_default_callbacks()
        ]
