"""Which errors are lost infrastructure, and how soon a silent raylet or GCS is one."""

import socket
from types import SimpleNamespace

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
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


@pytest.fixture
def doors(tmp_path, monkeypatch):
    """A raylet and a GCS that listen; (raylet, gcs, watch, clock)."""
    raylet = socket.socket(socket.AF_UNIX)
    raylet.bind(str(tmp_path / "raylet"))
    gcs = socket.socket()
    gcs.bind(("127.0.0.1", 0))
    for door in (raylet, gcs):
        door.listen(100)
    address = f"127.0.0.1:{gcs.getsockname()[1]}"
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    node = SimpleNamespace(node=SimpleNamespace(raylet_socket_name=str(tmp_path / "raylet")))
    monkeypatch.setattr("trainer.runtime.cluster_watch.worker.global_worker", node)
    clock, losses = Clock(), list[Exception]()
    yield raylet, gcs, ClusterWatch(losses.append, clock), clock
    raylet.close()
    gcs.close()


def test_while_both_answer_nothing_is_lost(doors):
    _, _, watch, clock = doors
    for clock.now in range(0, 100, 10):
        assert watch.knock() is None


@pytest.mark.parametrize(("which", "patience", "name"), [(0, RAYLET_S, "the raylet"), (1, GCS_S, "GCS at 127.0.0.1:")])
def test_one_that_is_silent_for_too_long_is_lost(doors, which, patience, name):
    watch, clock = doors[2:]
    assert watch.knock() is None
    doors[which].close()
    clock.now += patience - 0.1
    assert watch.knock() is None
    clock.now += 0.2
    loss = watch.knock()
    assert isinstance(loss, ClusterLostError)
    assert name in str(loss)


def test_one_that_comes_back_in_time_is_not(doors, tmp_path):
    raylet, _, watch, clock = doors
    raylet.close()
    clock.now += RAYLET_S - 0.1
    assert watch.knock() is None
    (tmp_path / "raylet").unlink()
    with socket.socket(socket.AF_UNIX) as again:
        again.bind(str(tmp_path / "raylet"))
        again.listen(1)
        clock.now += 0.2
        assert watch.knock() is None
