"""Whether the Ray cluster is still there: lost infrastructure is tried again, a fault of the run's own is not.

A driver whose raylet died is ended by Ray some seconds later with a page of log lines, and one whose GCS died waits for
a minute. The watch sees it first: it holds a connection to each, which the system closes when a process dies.
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

INTERVAL_S = 0.2
CONNECT_TIMEOUT_S = 2.0
RAYLET_S = 0.5
GCS_S = 20.0  # one that is started again is waited for
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


class Connection:
    """A connection that is held to see whether the other end lives; nothing is sent."""

    def __init__(self, name: str, connect: Callable[[], socket.socket], patience_s: float, now: float) -> None:
        """Not connected yet.

        Args:
            name: of the other end, for messages.
            connect: makes the connection.
            patience_s: seconds after which an end that cannot be connected to is gone.
            now: the current time in seconds.
        """
        self.name, self._connect, self._patience_s = name, connect, patience_s
        self._lived, self._socket = now, None
        self._problem = ""

    def is_gone(self, now: float) -> bool:
        """Whether the other end has not been there for longer than the patience."""
        if self._socket is not None and self._is_closed(self._socket):
            self._socket = None
        if self._socket is None:
            try:
                self._socket = self._connect()
                self._socket.setblocking(False)
            except OSError as error:
                self._problem = str(error)
                return now - self._lived >= self._patience_s
        self._lived = now
        return False

    def _is_closed(self, held: socket.socket) -> bool:
        try:
            while held.recv(4096):  # a server of gRPC begins with its settings
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        held.close()
        return True

    def let_go(self) -> None:
        """Close it."""
        if self._socket is not None:
            self._socket.close()

    def __str__(self) -> str:
        """Who does not answer, and why."""
        return f"{self.name} does not answer ({self._problem})"


class ClusterWatch(threading.Thread):
    """Watches this node's raylet and the cluster's GCS until it is closed, or one of them is gone."""

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
        gcs, raylet = (host.strip("[]"), int(port)), str(node.raylet_socket_name)
        self._connections = [
            Connection("the raylet of this machine", lambda: _local(raylet), RAYLET_S, clock()),
            Connection(
                f"the GCS at {host}:{port}", lambda: socket.create_connection(gcs, CONNECT_TIMEOUT_S), GCS_S, clock()
            ),
        ]
        self._closed = threading.Event()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def run(self) -> None:
        """The thread: look at intervals."""
        while not self._closed.wait(INTERVAL_S):
            loss = self.loss()
            if loss is not None:
                self._lost(loss)
                break
        for connection in self._connections:
            connection.let_go()

    def loss(self) -> ClusterLostError | None:
        """Look once; the loss, where one of them is gone."""
        gone = next((each for each in self._connections if each.is_gone(self._clock())), None)
        return None if gone is None else ClusterLostError(f"the Ray cluster is gone: {gone}")


def _local(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
