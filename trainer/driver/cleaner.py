"""Ray Train's cleaner of placement groups, which ends when its work is done.

Ray starts a detached actor for each controller, which frees the controller's placement group if the controller dies
while its job lives on, as a trial of a sweep may. Ray 2.60's never ends by itself: it calls `exit_actor` in a thread,
where that has no effect; without a dashboard it never learns that the controller is dead; and it waits to be asked to
watch by a controller that may be dead before it can ask.
"""

import queue
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import actors
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

MAX_FAILURES = 60  # in a row, about one a second


class EndingCleaner(PlacementGroupCleaner):
    """Ends its process once it was stopped, or the controller is dead and its placement group is removed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - Ray's
        """Begin to watch at once: a controller that dies early never gets to ask for it."""
        super().__init__(*arguments, **named)
        self.start_monitoring()

    def _monitor_loop(self) -> None:
        group, failures = None, 0
        while not self._stop_event.is_set() and failures < MAX_FAILURES:
            with suppress(queue.Empty):
                group = self._pg_queue.get(timeout=self._check_interval_s)
            try:
                state = actors(self._controller_actor_id).get("State", "DEAD")
                failures = 0
            except Exception:  # noqa: BLE001 - the cluster's state may be away for a while
                failures += 1
                continue
            if state == "DEAD":
                while not self._pg_queue.empty():
                    group = self._pg_queue.get()
                self._cleanup_placement_group(group)
                break
        ray.kill(ray.get_runtime_context().current_actor)  # a process that just exits is reported as a crash


class EndingCleanerCallback(PlacementGroupCleanerCallback):
    """Starts an EndingCleaner; called in the controller's process."""

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401 - Ray's
        """Start it beside the controller."""
        placement_group_callback.PlacementGroupCleaner = EndingCleaner  # pyright: ignore[reportPrivateImportUsage]
        super().after_controller_start(train_run_context)
