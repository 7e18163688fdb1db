"""How answers of Ray's job server are read, including malformed ones; tests/integration uses a real server."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import ray_jobs
from cluster.errors import RayUnavailableError, RefusedError
from cluster.ray_jobs import ADDRESS_VARIABLES, RayJobs
from cluster.spec import Ending

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}
UNKNOWN = (404, "Job one does not exist")


class Server(ThreadingHTTPServer):
    """Answers from a table, (method, path) -> (status, body); else 404, not worded as Ray's. It has every package."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], tuple[int, object]] = {("GET", "/api/version"): (200, VERSION)}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Server)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
        ((200, info("PENDING")), None),
        ((200, info("RUNNING")), None),
        ((200, info("SUCCEEDED", 0)), Ending(status="succeeded", exit_code=0, message="some words")),
        ((200, info("FAILED", 75)), Ending(status="failed", exit_code=75, message="some words")),
        ((200, info("FAILED")), Ending(status="failed", message="some words")),
        ((200, info("STOPPED", -15)), Ending(status="stopped", exit_code=-15, message="some words")),
        (UNKNOWN, Ending(status="lost")),
    ],
)
def test_endings(server: Server, answer: tuple[int, object], ending: Ending | None):
    server.answers["GET", "/api/jobs/one"] = answer
    assert RayJobs(server.address).ending("one") == ending


@pytest.mark.parametrize("answer", [(404, "<html>backend not ready</html>"), (502, "bad gateway"), (500, "trouble")])
def test_trouble_is_not_taken_for_an_ending(server: Server, answer: tuple[int, object]):
    server.answers["GET", "/api/jobs/one"] = answer
    server.answers["POST", "/api/jobs/one/stop"] = server.answers["GET", "/api/v0/logs/file"] = answer
    jobs = RayJobs(server.address)
    for ask in (jobs.ending, jobs.stop, lambda name: list(jobs.log(name))):
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
        ((500, "no agent, try again later"), UNKNOWN, RayUnavailableError),
        ((500, "answered too late"), (200, info("RUNNING")), None),
    ],
)
def test_submitting(server: Server, tmp_path: Path, posted: tuple, known: tuple, error: type[Exception] | None):
    archive = tmp_path / "code.zip"
    archive.write_bytes(b"PK\x05\x06" + bytes(18))
    server.answers["POST", "/api/jobs/"] = posted
    server.answers["GET", "/api/jobs/one"] = known
    jobs = RayJobs(server.address)
    if error is None:
        jobs.submit("one", ["true"], archive, {})
    else:
        with pytest.raises(error):
            jobs.submit("one", ["true"], archive, {})


def test_code_that_is_gone_is_refused_before_ray_is_asked(server: Server, tmp_path: Path):
    jobs = RayJobs(server.address)
    before = list(server.asked)
    with pytest.raises(RefusedError, match=r"its code snapshot is missing or not readable: .*gone\.zip"):
        jobs.submit("one", ["true"], tmp_path / "gone.zip", {})
    assert server.asked == before


def test_following_an_attempt_that_cannot_be_followed(server: Server):
    server.answers["GET", "/api/jobs/one"] = (200, info("RUNNING"))

    async def follow() -> list[str]:
        return [text async for text in RayJobs(server.address).follow("one")]

    with pytest.raises(RayUnavailableError, match="failed: "):
        asyncio.run(follow())


def test_nodes(server: Server):
    rows = [{"resources_total": {"CPU": 2.0}, "state": "ALIVE"}]
    server.answers["GET", "/api/v0/nodes"] = (200, {"data": {"result": {"result": rows}}})
    assert RayJobs(server.address).nodes() == [{"CPU": 2.0}]


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
