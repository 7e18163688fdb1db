"""How answers of Ray's job server are read, including malformed ones; tests/integration uses a real server."""

import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import logs, ray_jobs
from cluster.database.tables import Attempt
from cluster.errors import RayUnavailableError, RefusedError
from cluster.files import log_name
from cluster.logs import print_logs
from cluster.placement import Node
from cluster.ray_jobs import ADDRESS_VARIABLES, RayJobs
from cluster.resources import Bundle
from cluster.snapshot import MAX_SNAPSHOT_BYTES
from cluster.spec import Alive, Ending
from cluster.store import Store
from tests.cluster.conftest import spec

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}
UNKNOWN = (404, "Job one does not exist")


class Server(ThreadingHTTPServer):
    """Answers from a table, (method, path) -> (status, body); else 404, not worded as Ray's. It has every package."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], tuple[int, object]] = {("GET", "/api/version"): (200, VERSION)}
        self.asked: list[str] = []
        self.sent: list[bytes] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Server)
        self.server.sent.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        otherwise = (200, "") if path.startswith("/api/packages/") else (404, "<html>no such page</html>")
        status, body = self.server.answers.get((self.command, path), otherwise)
        self.send_response(status)
        self.end_headers()
        text = body if isinstance(body, (str, bytes)) else json.dumps(body)
        self.wfile.write(text if isinstance(text, bytes) else text.encode())

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def info(status: str, code: int | None = None) -> dict[str, object]:
    return {
        "type": "SUBMISSION", "submission_id": "one", "entrypoint": "true", "status": status,
        "message": "some\nwords", "driver_exit_code": code,
    }  # fmt: skip


def test_an_address_that_is_given_beats_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ADDRESS_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert RayJobs(server.address).address == server.address
    assert server.asked
    with pytest.raises(RayUnavailableError, match=r"no Ray job server answers at http://127\.0\.0\.1:9"):
        RayJobs()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
    assert RayJobs().address == server.address


@pytest.mark.parametrize("answer", [(404, "no"), (500, "no"), (200, "not JSON"), (200, {"strange": 1})])
def test_a_server_that_is_not_rays(server: Server, answer: tuple[int, object]):
    server.answers["GET", "/api/version"] = answer
    with pytest.raises(RayUnavailableError, match="no Ray job server"):
        RayJobs(server.address)


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        ((200, info("PENDING")), Alive(started=False, message="some words")),
        ((200, {**info("PENDING"), "message": "Job has not started yet. It may be …"}), Alive(started=False)),
        ((200, info("RUNNING")), Alive(started=True, message="some words")),
        ((200, info("SUCCEEDED", 0)), Ending(status="succeeded", exit_code=0, message="some words")),
        ((200, info("FAILED", 75)), Ending(status="failed", exit_code=75, message="some words")),
        ((200, info("FAILED")), Ending(status="failed", message="some words")),
        ((200, info("STOPPED", -15)), Ending(status="stopped", exit_code=-15, message="some words")),
        (UNKNOWN, Ending(status="lost")),
    ],
)
def test_what_attempts_do(server: Server, answer: tuple[int, object], ending: Ending | Alive):
    server.answers["GET", "/api/jobs/one"] = answer
    assert RayJobs(server.address).look("one") == ending


@pytest.mark.parametrize("answer", [(404, "<html>backend not ready</html>"), (502, "bad gateway"), (500, "trouble")])
def test_trouble_is_not_taken_for_an_ending(server: Server, answer: tuple[int, object]):
    server.answers["GET", "/api/jobs/one"] = answer
    server.answers["POST", "/api/jobs/one/stop"] = server.answers["GET", "/api/v0/logs/file"] = answer
    jobs = RayJobs(server.address)
    for ask in (jobs.look, jobs.stop, lambda name: list(jobs.log(name))):
        with pytest.raises(RayUnavailableError, match="failed: "):
            ask("one")
    server.answers["GET", "/api/jobs/one"] = (200, {**info("RUNNING"), "driver_node_id": "a" * 56})
    with pytest.raises(RayUnavailableError, match="failed: "):
        list(jobs.log("one"))


@pytest.mark.parametrize(
    ("posted", "known", "error"),
    [
        ((200, {"job_id": "one", "submission_id": "one"}), UNKNOWN, None),
        ((400, "already exists"), (200, info("RUNNING")), None),
        ((400, "bad runtime_env"), UNKNOWN, RefusedError),
        ((413, "Maximum request body size exceeded"), UNKNOWN, RefusedError),
        ((500, "no agent, try again later"), UNKNOWN, RayUnavailableError),
        ((500, "answered too late"), (200, info("RUNNING")), None),
    ],
)
def test_submitting(server: Server, tmp_path: Path, posted: tuple, known: tuple, error: type[Exception] | None):
    archive = code(tmp_path)
    server.answers["POST", "/api/jobs/"] = posted
    server.answers["GET", "/api/jobs/one"] = known
    jobs = RayJobs(server.address)
    if error is None:
        jobs.submit("one", ["true"], archive, {})
    else:
        with pytest.raises(error):
            jobs.submit("one", ["true"], archive, {})


def code(folder: Path) -> Path:
    """An empty archive, named as it has to be."""
    content = b"PK\x05\x06" + bytes(18)
    archive = folder / f"{hashlib.sha256(content).hexdigest()}.zip"
    archive.write_bytes(content)
    return archive


def test_code_that_was_altered_is_refused(server: Server, tmp_path: Path):
    archive = code(tmp_path)
    server.answers["POST", "/api/jobs/"] = (200, {"job_id": "one", "submission_id": "one"})
    jobs = RayJobs(server.address)
    jobs.submit("one", ["true"], archive, {})
    archive.write_bytes(b"PK\x05\x06" + bytes(17) + b"x")
    before = list(server.asked)
    with pytest.raises(RefusedError, match="its code snapshot was altered since it was submitted"):
        jobs.submit("two", ["true"], archive, {})
    assert server.asked == before


@pytest.mark.parametrize("length", [0, MAX_SNAPSHOT_BYTES + 1])
def test_code_that_was_altered_in_place_is_refused(server: Server, tmp_path: Path, length: int):
    """With the time of its last change put back, or of any size."""
    archive = code(tmp_path)
    server.answers["POST", "/api/jobs/"] = (200, {"job_id": "one", "submission_id": "one"})
    jobs = RayJobs(server.address)
    jobs.submit("one", ["true"], archive, {})
    status = archive.stat()
    with archive.open("r+b") as file:
        file.write(b"x")
        file.truncate(max(length, status.st_size))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RefusedError, match="its code snapshot was altered since it was submitted"):
        jobs.submit("two", ["true"], archive, {})


def test_a_password_in_the_address_is_shown_to_nobody(server: Server):
    jobs = RayJobs(server.address.replace("://", "://me:hun@ter2hunter2@"))
    assert jobs.address == server.address
    assert "hunter2" not in str(jobs._server_error(RuntimeError("GET http://me:hunter2@host/x failed")))
    with pytest.raises(RayUnavailableError) as caught:
        RayJobs("http://me:hunter2@127.0.0.1:1")
    assert "hunter2" not in str(caught.value)


def test_code_that_is_gone_is_refused_before_ray_is_asked(server: Server, tmp_path: Path):
    jobs = RayJobs(server.address)
    before = list(server.asked)
    with pytest.raises(RefusedError, match=r"its code snapshot is missing: .*gone\.zip"):
        jobs.submit("one", ["true"], tmp_path / "gone.zip", {})
    assert server.asked == before


def rows(server: Server, kind: str, *found: dict[str, object]) -> None:
    server.answers["GET", f"/api/v0/{kind}"] = (200, {"data": {"result": {"result": list(found)}}})


def actor(
    job: str, node: str | None, name: str = "", group: str | None = None, **resources: float
) -> dict[str, object]:
    return {
        "job_id": job, "name": name, "node_id": node, "placement_group_id": group, "required_resources": resources,
    }  # fmt: skip


def test_nodes_and_who_holds_what(server: Server, monkeypatch: pytest.MonkeyPatch):
    node = {
        "node_id": "n1",
        "node_name": "host",
        "node_ip": "10.0.0.1",
        "resources_total": {"CPU": 8.0},
        "labels": {"zone": "a"},
    }
    rows(server, "nodes", node)
    bundle = {"node_id": "n1", "unit_resources": {"CPU": 1.0, "GPU": 1.0}}
    rows(
        server,
        "placement_groups",
        {"state": "CREATED", "creator_job_id": "01", "bundles": [bundle, bundle]},
        {"state": "REMOVED", "creator_job_id": "01", "bundles": [bundle]},
        {"state": "PENDING", "creator_job_id": "02", "bundles": [{**bundle, "node_id": None}]},
        {"state": "CREATED", "creator_job_id": "02", "bundles": [bundle]},
    )
    rows(
        server,
        "actors",
        actor("09", "n1", "_ray_internal_job_actor_one", memory=5.0),  # which runs the command of ours
        actor("09", "n1", "_ray_internal_job_actor_other", memory=7.0),
        actor("01", "n1", group="a group", CPU=1.0),  # counted with its group
        actor("02", "n1", CPU=0.5),
        actor("02", None, CPU=0.5),
        {**actor("02", "n1"), "required_resources": None},
    )
    rows(server, "tasks", actor("01", "n1", CPU=2.0), actor("03", "n1", CPU=0.25), actor("04", "n1", CPU=0.125))
    server.answers["GET", "/api/jobs/one"] = (200, {**info("RUNNING"), "job_id": "01"})
    jobs = RayJobs(server.address)
    jobs.look("one")
    server.answers["GET", "/api/jobs/one"] = (200, {**info("RUNNING"), "job_id": "04"})
    jobs.look("one")  # its second driver
    nodes, attempts = jobs.nodes(["one", "two"])
    labels = {"zone": "a", "ray.io/node-id": "n1"}
    assert nodes == [Node("n1", {"CPU": 8.0}, {"CPU": 1.75, "GPU": 1.0, "memory": 7.0}, labels, "host", "10.0.0.1")]
    assert attempts == {"one": {"n1": {"CPU": 4.125, "GPU": 2.0, "memory": 5.0}}, "two": {}}
    monkeypatch.setattr(ray_jobs, "LINGER_S", 0.2)
    [node_] = jobs.nodes(["two"])[0]  # it has just ended, and its last processes are about to
    assert node_.held == {"CPU": 1.75, "GPU": 1.0, "memory": 7.0}
    time.sleep(0.3)
    jobs.nodes([])
    [node_] = jobs.nodes([])[0]  # what it has left behind
    assert node_.held == {"CPU": 5.875, "GPU": 3.0, "memory": 12.0}


def test_where_a_command_goes_and_what_it_takes(server: Server, tmp_path: Path):
    archive = code(tmp_path)
    server.answers["POST", "/api/jobs/"] = (200, {"job_id": "one", "submission_id": "one"})
    jobs = RayJobs(server.address)
    driver = Bundle(resources={"CPU": 2.0, "GPU": 0.5, "memory": 1e9, "licence": 1.0})
    jobs.submit("one", ["true"], archive, {"A": "b"}, driver, "n1")
    sent = json.loads(server.sent[-1])
    assert {name: value for name, value in sent.items() if name.startswith("entrypoint_")} == {
        "entrypoint_num_cpus": 2.0, "entrypoint_num_gpus": 0.5, "entrypoint_memory": 10**9,
        "entrypoint_resources": {"licence": 1.0}, "entrypoint_label_selector": {"ray.io/node-id": "n1"},
    }  # fmt: skip
    jobs.submit("one", ["true"], archive, {})
    assert not [name for name in json.loads(server.sent[-1]) if name.startswith("entrypoint_")]


def test_the_cause_of_a_failure_is_at_the_end_of_its_message():
    assert ray_jobs._cause("") == ""
    assert ray_jobs._cause("Traceback:\nValueError:  the   cause\n") == "Traceback: ValueError: the cause"
    long = ray_jobs._cause(f"Traceback\n{'a ' * 400}\nValueError: the cause\n")
    assert len(long) == 301
    assert long.startswith("…")
    assert long.endswith("a a ValueError: the cause")


def test_the_output_is_what_was_written_byte_by_byte(server: Server):
    output = b"hello\xff\x00\n" * 400_000
    server.answers["GET", "/api/v0/logs/file"] = (200, output)
    server.answers["GET", "/api/jobs/one"] = (200, info("PENDING"))  # which has not come to a node
    assert list(RayJobs(server.address).log("one")) == []
    server.answers["GET", "/api/jobs/one"] = (200, {**info("RUNNING"), "driver_node_id": "a" * 56})
    parts = list(RayJobs(server.address).log("one"))
    assert b"".join(parts) == output
    assert max(map(len, parts)) <= ray_jobs.LOG_PART_BYTES


def started(store: Store) -> Attempt:
    """An attempt that Ray has taken."""
    attempt = store.begin_attempt(store.submit(spec()).id)
    assert attempt is not None
    store.confirm(attempt)
    return attempt


def test_an_output_is_followed_by_reading_it_again(
    server: Server, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Ray keeps one of its state API's places for each that follows its stream, also when it has gone."""
    attempt = started(store)
    name = attempt.submission_id
    server.answers["GET", f"/api/jobs/{name}"] = (200, info("PENDING"))  # which has not come to a node
    output, waited = [b"gr\xc3", b"\xbc\xc3\x9fe\xff\n", b"end\n"], itertools.count()

    def sleep(_: float) -> None:
        match number := next(waited):
            case 4:
                server.answers["GET", "/api/v0/logs/file"] = (500, "no such node")
            case 5:
                store.files.write(log_name(name), [b"".join(output)])
                store.end_attempt(attempt, Ending(status="succeeded", exit_code=0))
            case _:
                server.answers["GET", f"/api/jobs/{name}"] = (200, {**info("RUNNING"), "driver_node_id": "a" * 56})
                server.answers["GET", "/api/v0/logs/file"] = (200, b"".join(output[:number]))

    monkeypatch.setattr(logs, "REST", 0.0)
    monkeypatch.setattr("cluster.logs.time.sleep", sleep)
    print_logs(store, attempt.job_id, follow=True, address=server.address)
    assert capsys.readouterr().out == "grüße\ufffd\nend\n"
    assert {path for path in server.asked if "logs" in path} == {"/api/v0/logs/file"}


def test_the_end_of_an_output_that_was_cut_is_shown(
    server: Server, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of one that is longer than what is kept of it, too."""
    attempt = started(store)
    name = attempt.submission_id
    server.answers["GET", f"/api/jobs/{name}"] = (200, {**info("RUNNING"), "driver_node_id": "a" * 56})
    server.answers["GET", "/api/v0/logs/file"] = (200, b"x" * 1000)

    def sleep(_: float) -> None:
        store.files.write(log_name(name), [b"x" * 100, b"\n(0.1 MiB left out)\n", b"ValueError: the cause\n"])
        store.end_attempt(attempt, Ending(status="failed", exit_code=1))

    monkeypatch.setattr("cluster.logs.time.sleep", sleep)
    print_logs(store, attempt.job_id, follow=True, address=server.address)
    printed = capsys.readouterr()
    assert printed.out.startswith("x" * 1000)
    assert printed.out.endswith("\nValueError: the cause\n")
    assert "not all of the output is kept" in printed.err
