"""Which errors are lost infrastructure, and how soon a silent raylet or GCS is one."""

import socket
from types import SimpleNamespace

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RpcError
from ray.train import ControllerError, WorkerGroupError

from trainer.errors import ClusterLostError
from trainer.runtime.cluster_watch import GCS_S, RAYLET_S, ClusterWatch, is_loss


def actor_died(reason: str) -> ActorDiedError:
    """As Ray raises it, with its own message."""
    return ActorDiedError(ActorDiedErrorContext(class_name="Worker", actor_id=b"\x00" * 16, error_message=reason))


NODE_DIED = actor_died("The actor is dead because its node has died. Node Id: 12")


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (NodeDiedError("gone"), True),
        (ControllerError(ActorUnavailableError("a node went while the group started", None)), True),
        (ControllerError(ValueError("a mistake")), False),
        (WorkerGroupError("died", {0: NODE_DIED}), True),
        (WorkerGroupError("died", {0: actor_died("The actor is dead because its worker process has died")}), False),
        (WorkerGroupError("raised", {1: ZeroDivisionError("x")}), False),
        (RpcError("unavailable"), True),
        (OutOfMemoryError("too large"), False),
        (KeyError("a mistake"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_lost_machine_is_no_fault_of_the_run(error, loss):
    assert is_loss(error) == loss
    try:
        raise RuntimeError("while evaluating") from error
    except RuntimeError as wrapped:
        assert is_loss(wrapped) == loss  # noqa: PT017 - the cause is set by raising


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Server:
    """Somebody who listens and accepts, and can die."""

    def __init__(self, family, address):
        self.listening = socket.socket(family)
        self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listening.bind(address)
        self.listening.listen(10)
        self.address = self.listening.getsockname()

    def accept(self):
        self.accepted = self.listening.accept()[0]
        self.accepted.sendall(b"settings")  # as a server of gRPC does

    def die(self):
        self.listening.close()
        self.accepted.close()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """(raylet, gcs, watch, clock): both listen, and are connected to."""
    raylet, gcs = Server(socket.AF_UNIX, str(tmp_path / "raylet")), Server(socket.AF_INET, ("127.0.0.1", 0))
    context = SimpleNamespace(gcs_address=f"127.0.0.1:{gcs.address[1]}")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    node = SimpleNamespace(node=SimpleNamespace(raylet_socket_name=raylet.address))
    monkeypatch.setattr("trainer.runtime.cluster_watch.worker.global_worker", node)
    clock = Clock()
    watch = ClusterWatch(lambda _: None, clock)
    assert watch.loss() is None
    raylet.accept()
    gcs.accept()
    yield raylet, gcs, watch, clock
    raylet.die()
    gcs.die()
    watch.close()
    watch.run()


def test_while_both_live_nothing_is_lost_and_nothing_is_sent(cluster):
    raylet, gcs, watch, clock = cluster
    for clock.now in range(0, 100, 10):
        assert watch.loss() is None
    for server in (raylet, gcs):
        server.accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accepted.recv(1)


@pytest.mark.parametrize(("which", "patience", "name"), [(0, RAYLET_S, "the raylet"), (1, GCS_S, "GCS at 127.0.0.1:")])
def test_one_that_died_is_lost_after_its_time(cluster, which, patience, name):
    watch, clock = cluster[2:]
    cluster[which].die()
    assert watch.loss() is None
    clock.now += patience - 0.1
    assert watch.loss() is None
    clock.now += 0.2
    loss = watch.loss()
    assert isinstance(loss, ClusterLostError)
    assert name in str(loss)
    assert "Connection refused" in str(loss)


def test_one_that_comes_back_in_time_is_not(cluster, tmp_path):
    gcs, watch, clock = cluster[1:]
    gcs.die()
    clock.now += GCS_S - 1
    assert watch.loss() is None
    again = Server(socket.AF_INET, gcs.address)
    clock.now += 2
    assert watch.loss() is None
    again.accept()
    again.die()


def test_one_that_closes_an_idle_connection_is_connected_to_again(cluster):
    gcs, watch, clock = cluster[1:]
    gcs.accepted.close()
    clock.now += GCS_S + 1
    assert watch.loss() is None
