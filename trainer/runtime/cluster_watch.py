"""Whether the Ray cluster is still there: lost infrastructure is tried again, a fault of the run's own is not.

A driver whose raylet died is ended by Ray some seconds later with a page of log lines, and one whose GCS died waits for
a minute. The watch sees it first, by knocking at both.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import worker
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OwnerDiedError,
    RpcError,
)
from ray.train import ControllerError, WorkerGroupError

from trainer.errors import ClusterLostError

INTERVAL_S = 0.5
CONNECT_TIMEOUT_S = 2.0
RAYLET_S = 2.0
GCS_S = 20.0  # a server of the cluster's state that is started again is waited for
LOSSES = (NodeDiedError, LocalRayletDiedError, ActorUnavailableError, OwnerDiedError, RpcError)


def is_loss(error: BaseException) -> bool:
    """Whether an error of Ray stands for a lost machine or connection, and not for a fault of the run."""
    return any(
        isinstance(each, LOSSES) or (isinstance(each, ActorDiedError) and "its node has died" in str(each))
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, ControllerError):
        yield from _causes(error.controller_failure)
    elif isinstance(error, WorkerGroupError):
        for failure in error.worker_failures.values():
            yield from _causes(failure)
    elif error.__cause__ is not None:
        yield from _causes(error.__cause__)


class ClusterWatch(threading.Thread):
    """Knocks at this node's raylet and at the cluster's GCS until it is closed, or one of them is gone."""

    def __init__(self, lost: Callable[[Exception], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Find the addresses, in a process that has joined the cluster.

        Args:
            lost: called once, with a ClusterLostError.
            clock: the current time in seconds.
        """
        super().__init__(name="cluster-watch", daemon=True)
        self._lost, self._clock = lost, clock
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        node: Any = worker.global_worker.node
        raylet: str = node.raylet_socket_name
        self._doors: dict[str, tuple[Callable[[], socket.socket], float]] = {
            "the raylet of this machine": (lambda: _local(raylet), RAYLET_S),
            f"the cluster's GCS at {host}:{port}": (
                lambda: socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S),
                GCS_S,
            ),
        }
        self._answered = dict.fromkeys(self._doors, clock())
        self._closed = threading.Event()

    def close(self) -> None:
        """Knock no more."""
        self._closed.set()

    def run(self) -> None:
        """The thread: knock at intervals."""
        while not self._closed.wait(INTERVAL_S):
            loss = self.knock()
            if loss is not None:
                self._lost(loss)
                return

    def knock(self) -> ClusterLostError | None:
        """Knock once; the loss, where somebody has not answered for too long."""
        for name, (door, patience_s) in self._doors.items():
            try:
                door().close()
                self._answered[name] = self._clock()
            except OSError as error:
                if self._clock() - self._answered[name] >= patience_s:
                    return ClusterLostError(f"the Ray cluster is gone: {name} does not answer ({error})")
        return None


def _local(path: str) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.settimeout(CONNECT_TIMEOUT_S)
    try:
        door.connect(path)
    except OSError:
        door.close()
        raise
    return door
