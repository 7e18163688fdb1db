"""Heartbeats over real HTTP on loopback: who may send them, what they are answered, and where the server is found."""

import json
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.heartbeats import MAX_CONNECTIONS, HeartbeatServer, Tokens, reachable_host
from cluster.spec import Beat


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "queue.db")


@pytest.fixture
def server(tokens: Tokens) -> Iterator[HeartbeatServer]:
    with HeartbeatServer(tokens, "127.0.0.1") as running:
        yield running


def send(server: HeartbeatServer, token: str | None, body: bytes = b"{}") -> tuple[int, dict[str, object]]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token is not None else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url, body, headers), timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, {}


def token(server: HeartbeatServer, submission_id: str) -> str:
    return Path(server.environment(submission_id)["DUALVIEW_QUEUE_TOKEN_FILE"]).read_text()


def test_what_is_heard_and_answered(server: HeartbeatServer):
    one, two = token(server, "one"), token(server, "two")
    body = json.dumps({"job": "3", "run": "x", "step": 5, "steps": 9, "saved_step": 4, "state": "starting", "more": 1})
    assert send(server, one, body.encode()) == (200, {"preempt": False})
    assert send(server, two) == (200, {"preempt": False})
    beat = server.heard()["one"]
    assert (beat.step, beat.steps, beat.saved_step, beat.state) == (5, 9, 4, "starting")
    assert beat.at > 1e9
    assert server.heard()["two"].model_copy(update={"at": 0.0}) == Beat()
    server.answer({"two": "makes room for job 9"})
    assert send(server, two) == (200, {"preempt": True, "reason": "makes room for job 9"})
    assert send(server, one) == (200, {"preempt": False})
    server.forget("one")
    assert send(server, one)[0] == 410
    assert set(server.heard()) == {"two"}


@pytest.mark.parametrize("bad", [None, "", "one", "one.", ".", "one.0", "two.{one}", "{one}x", "ü.é"])
def test_without_the_token_nothing_is_heard(server: HeartbeatServer, bad: str | None):
    signature = token(server, "one").rpartition(".")[2]
    given = bad if bad is None else bad.replace("{one}", f"one.{signature}" if bad.startswith("{") else signature)
    if given is None or given.isascii():
        assert send(server, given)[0] == 401
    else:
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1].split("/")[0]))) as raw:
            raw.sendall(f"POST /heartbeat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {given}\r\n".encode())
            raw.sendall(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            assert raw.recv(100).split()[1] == b"401"
    assert server.heard() == {}


def test_metrics_for_prometheus(server: HeartbeatServer):
    server.measure("waiting", {("vision", "resources"): 3, ("default", "held"): 1})
    server.measure("waiting", {("vision", "resources"): 2})
    server.measure("running", {("vision", "running"): 5})
    with urllib.request.urlopen(server.url.replace("/heartbeat", "/metrics"), timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'dualview_queue_waiting{code="resources",queue="vision"} 2.0',
        'dualview_queue_running{queue="vision",state="running"} 5.0',
    ]


def test_a_body_without_end_is_not_read(server: HeartbeatServer):
    assert send(server, token(server, "one"), b"{" + b" " * 2**17)[0] == 413
    assert server.heard() == {}


def connect(server: HeartbeatServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1].split("/")[0])), timeout=10)


def test_a_head_without_end_is_not_read(server: HeartbeatServer):
    with connect(server) as raw, suppress(OSError):  # which the server closes
        raw.sendall(b"POST /heartbeat HTTP/1.1\r\n")
        for number in range(2**20):
            raw.sendall(b"X-%d: %s\r\n" % (number, b"x" * 2**16))
        pytest.fail("64 GiB of headers were taken")
    assert send(server, token(server, "one"))[0] == 200


def test_connections_on_which_nothing_comes_keep_nobody_out(server: HeartbeatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.heartbeats.CONNECTION_S", 1.0)
    given = token(server, "one")
    idle = [connect(server) for _ in range(MAX_CONNECTIONS + 50)]
    assert send(server, given)[0] == 200
    for each in idle:
        with each, suppress(ConnectionResetError):
            assert each.recv(1) == b""
    assert send(server, given)[0] == 200


def test_tokens_of_a_killed_dispatcher_are_removed(server: HeartbeatServer, tokens: Tokens, tmp_path: Path):
    for name in ("one", "two"):
        token(server, name)
    server.serve(["two"])
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["two", "two.answer", "two.url"]


def test_the_next_dispatcher_says_where_it_listens(tokens: Tokens, tmp_path: Path):
    with HeartbeatServer(tokens, "127.0.0.1") as first, HeartbeatServer(tokens, "127.0.0.1") as second:
        file = Path(first.environment("one")["DUALVIEW_QUEUE_TOKEN_FILE"])
        assert file.with_name("one.url").read_text() == first.url
        second.serve(["one"])
        assert file.with_name("one.url").read_text() == second.url != first.url
        assert send(second, file.read_text()) == (200, {"preempt": False})


@pytest.mark.parametrize("body", [b"", b"[]", b'{"step": -1}', b'{"step": 1e99}', b'{"state": "odd"}', b"\xff", b"{"])
def test_malformed_heartbeats_change_nothing(server: HeartbeatServer, body: bytes):
    assert send(server, token(server, "one"), body)[0] in (400, 422)
    assert server.heard() == {}
    assert send(server, token(server, "one"))[0] == 200


def test_tokens_are_for_their_owner_alone_and_end_with_their_attempt(server: HeartbeatServer, tmp_path: Path):
    variables = server.environment("one")
    assert variables["DUALVIEW_QUEUE_URL"] == server.url
    path = Path(variables["DUALVIEW_QUEUE_TOKEN_FILE"])
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "queue.db.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert server.environment("one") == variables  # submitted again after a kill
    server.forget("one")
    assert not path.exists()
    assert list(tmp_path.glob("tokens/*")) == []


def test_the_next_dispatcher_is_found_at_the_same_place(tokens: Tokens, tmp_path: Path):
    port = tokens.port_file
    with HeartbeatServer(tokens, "127.0.0.1") as first:
        url, given = first.url, token(first, "one")
        with HeartbeatServer(tokens, "127.0.0.1") as taken:
            assert taken.url != url
        port.write_text(url.rsplit(":", 1)[1].split("/")[0])
    with HeartbeatServer(Tokens(tmp_path / "queue.db"), "127.0.0.1") as second:
        assert second.url == url
        second.serve(["one"])
        assert send(second, given)[0] == 200
    port.write_text("nonsense")
    with HeartbeatServer(tokens, "127.0.0.1") as third:
        third.serve(["one"])
        assert send(third, given)[0] == 200


def test_an_address_that_is_not_of_this_machine(tokens: Tokens):
    with pytest.raises(InputError, match=r"--listen 192\.0\.2\.77: .*allowed: an address of this machine"):
        HeartbeatServer(tokens, "192.0.2.77")
    with pytest.raises(InputError, match="allowed: a queue in a writable folder"):
        Tokens(Path("/proc/queue.db"))


def test_the_address_that_a_cluster_can_reach():
    assert reachable_host("http://127.0.0.1:8265") == "127.0.0.1"
    assert reachable_host("http://[::1]:8265") in ("::1", "127.0.0.1")
    assert reachable_host("http://no.such.host.invalid:8265") == "127.0.0.1"
