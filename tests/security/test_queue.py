"""Attacks on the queue by those who may write in its folder, submit to it, or run in it."""

import os
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster import retention, secrets
from cluster.__main__ import main
from cluster.database import lock, schema
from cluster.dispatching import print_line
from cluster.errors import FilesUnavailableError, InputError
from cluster.heartbeats import HeartbeatServer, Tokens
from cluster.spec import Ending
from cluster.store import Store
from tests.cluster.conftest import spec
from tests.trainer.driver.test_preemption import queue as fake_queue, until
from trainer.config.run import RunSettings
from trainer.config.run_config import RunConfig
from trainer.driver.heartbeat import QUEUE_URL_VARIABLE, Heartbeat, is_url, queue_url
from trainer.errors import InputError as RunInputError
from trainer.run.journal import Journal
from trainer.run.paths import RunPaths


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    (tmp_path / "queue").mkdir()
    return tmp_path / "queue" / "queue.db"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that is nobody's business, with an old one in it that is named like one of secrets."""
    folder = tmp_path / "victim"
    (folder / "a").mkdir(parents=True, mode=0o700)
    (folder / "a" / "file").write_text("mine")
    folder.chmod(0o700)
    old = folder / ("0" * 32)
    old.mkdir()
    (old / "A").write_text("mine")
    os.utime(old, (1, 1))
    return folder


def test_secrets_that_are_a_link_change_nothing_behind_it(anchor: Path, victim: Path):
    anchor.with_name("secrets").symlink_to(victim)
    with pytest.raises(FilesUnavailableError, match="cannot be written"):
        secrets.keep(anchor, spec(), {"A": b"hunter2"})
    secrets.forget(anchor, {"A_FILE": str(anchor.with_name("secrets") / ("0" * 32) / "A")})
    store = Store.open(f"sqlite:///{anchor}")
    assert retention.collect(store, 1e12).secrets == 0
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700
    assert sorted(path.name for path in victim.rglob("*")) == ["0" * 32, "A", "a", "file"]


@pytest.mark.parametrize("name", ["../x", "a/A", ".", "", "../../x/A", "{other}/../A"])
def test_a_variable_removes_nothing_but_its_own_secret(anchor: Path, victim: Path, name: str):
    kept = secrets.keep(anchor, spec(), {"A": b"hunter2"}).environment["A_FILE"]
    other = Path(kept).parent.name
    victim.rename(anchor.with_name("secrets") / "a")
    value = f"{anchor.with_name('secrets')}/{name.format(other=other)}"
    for variable in ("A_FILE", "x_FILE", "X"):
        secrets.forget(anchor, {variable: value})
    assert Path(kept).read_text() == "hunter2"
    assert (anchor.with_name("secrets") / "a" / "a" / "file").read_text() == "mine"
    secrets.forget(anchor, {"A_FILE": kept})
    assert not Path(kept).exists()


def test_a_job_cannot_name_the_secret_of_another(anchor: Path):
    kept = secrets.keep(anchor, spec(), {"A": b"hunter2"}).environment["A_FILE"]
    for value in (kept, kept.replace("/secrets/", "//secrets/./")):
        with pytest.raises(InputError, match="a secret of another job; allowed: --secret A=FILE"):
            secrets.check_variables(anchor, {"A_FILE": value})
    secrets.check_variables(anchor, {"A": kept, "A_FILE": "/elsewhere/A"})
    secrets.forget(anchor, {"A": kept})
    assert Path(kept).exists()


def test_secrets_folders_that_others_could_empty_are_not_used(anchor: Path, monkeypatch: pytest.MonkeyPatch):
    secrets.keep(anchor, spec(), {"A": b"hunter2"})
    folder = anchor.with_name("secrets")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    secrets.keep(anchor, spec(), {"A": b"hunter2"})
    folder.chmod(0o777)
    with pytest.raises(FilesUnavailableError, match="another user's"):
        secrets.keep(anchor, spec(), {"A": b"hunter2"})


@pytest.mark.parametrize("name", ["tokens", "queue.db.key"])
def test_tokens_that_are_a_link_are_not_believed(anchor: Path, victim: Path, name: str):
    (victim / "key").write_text("known")
    anchor.with_name(name).symlink_to(victim if name == "tokens" else victim / "key")
    with pytest.raises(InputError, match="a link, which others could have put there"):
        Tokens(anchor)


def test_tokens_are_closed_where_a_volume_has_opened_them(anchor: Path):
    """As one does that is mounted for a group."""
    key = Tokens(anchor).write("one", "http://x").read_text()
    modes = {anchor.with_name("tokens"): 0o770, anchor.with_name("queue.db.key"): 0o660}
    for path, mode in modes.items():
        path.chmod(mode)
    Tokens(anchor).remove("one")
    assert Tokens(anchor).write("one", "http://x").read_text() == key
    assert [stat.S_IMODE(path.stat().st_mode) for path in modes] == [0o700, 0o600]


def test_a_lock_that_is_a_link_changes_nothing_behind_it(anchor: Path, victim: Path):
    anchor.parent.chmod(0o777)
    (victim / "private").touch(0o600)
    lock.lock_file(anchor).symlink_to(victim / "private")
    with pytest.raises(InputError), lock.hold(anchor):
        pass
    assert stat.S_IMODE((victim / "private").stat().st_mode) == 0o600


def test_a_key_of_another_user_is_not_believed(anchor: Path, monkeypatch: pytest.MonkeyPatch):
    Tokens(anchor)
    Tokens(anchor)
    if os.getuid():
        pytest.skip("another user's file takes root")
    os.chown(anchor.with_name("queue.db.key"), 65534, -1)
    with pytest.raises(InputError, match="others could have put it there"):
        Tokens(anchor)
    os.chown(anchor.parent, 65534, -1)  # it is of whose folder it is
    Tokens(anchor)
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    os.chown(anchor.with_name("tokens"), 65534, -1)
    os.chown(anchor.with_name("queue.db.key"), 1, -1)
    with pytest.raises(InputError, match="others could have put it there"):
        Tokens(anchor)


def test_a_queue_is_not_made_where_everybody_puts_files(tmp_path: Path):
    tmp_path.chmod(0o1777)
    with pytest.raises(InputError, match="allowed: a folder of its own there"):
        Store.open(f"sqlite:///{tmp_path}/queue.db")
    store = Store.open(f"sqlite:///{tmp_path}/mine/queue.db")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
    with lock.hold(store.anchor):
        pass
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "mine").iterdir()} == {0o600}


def test_a_queue_is_never_open_while_it_is_made(anchor: Path, monkeypatch: pytest.MonkeyPatch):
    anchor.parent.chmod(0o755)
    modes: list[int] = []
    made = schema.make

    def looking(*arguments: object) -> None:
        made(*arguments)  # type: ignore[arg-type]
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in anchor.parent.iterdir())

    monkeypatch.setattr(schema, "make", looking)
    before = os.umask(0)
    try:
        Store.open(f"sqlite:///{anchor}")
    finally:
        os.umask(before)
    assert set(modes) == {0o600}


@pytest.mark.parametrize("odd", ["\x1b]52;c;aGk=\x07", "\x9b2J", "a\u202eb"])
def test_a_colleagues_words_are_shown_and_not_obeyed(
    anchor: Path, odd: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DUALVIEW_QUEUE", f"sqlite:///{anchor}")
    store = Store.open(f"sqlite:///{anchor}")
    store.submit(spec(command=["true", odd], user=f"u{odd}"))
    attempt = store.begin_attempt(1)
    assert attempt is not None
    store.end_attempt(attempt, Ending(status="failed", exit_code=1, message=odd))
    for command in (["list"], ["show", "1"], ["why", "1"], ["logs", "1"], ["usage"]):
        assert main(command) == 0
        captured = capsys.readouterr()
        shown = captured.out + captured.err
        assert not {each for each in shown if not each.isprintable()} - {"\n"}
    print_line(odd)
    assert not set(odd) - set("]52;c;aGk=2Jab") & set(capsys.readouterr().out)


@pytest.fixture
def beating(tmp_path: Path) -> Callable[[str], tuple[Heartbeat, list[str], list[str]]]:
    """Heartbeats of a run to a URL; what it was asked, and what it warned of."""

    def begin(url: str) -> tuple[Heartbeat, list[str], list[str]]:
        asked, warned = list[str](), list[str]()
        journal = Journal(RunPaths(tmp_path).journal)
        config = RunConfig(run=RunSettings(name="mine"))
        return Heartbeat(url, config, journal, asked.append, warned.append, interval_s=0.02), asked, warned

    return begin


def test_the_queue_is_obeyed_and_gets_no_token(
    anchor: Path, beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]], monkeypatch: pytest.MonkeyPatch
):
    with HeartbeatServer(Tokens(anchor), "127.0.0.1") as server:
        for name, value in server.environment("one").items():
            monkeypatch.setenv(name, value)
        heartbeat, asked, warned = beating(server.url)
        assert until(lambda: "one" in server.heard())
        server.answer({"one": "makes room for job 9"})
        assert until(lambda: bool(asked))
        heartbeat.close()
    assert asked == ["makes room for job 9"]
    assert warned == []


def test_the_reason_of_a_queue_is_shown_and_not_obeyed(
    beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]],
):
    with fake_queue([(200, b'{"preempt": true, "reason": "\\u001b]52;c;aGk=\\u0007"}')]) as (url, _):
        heartbeat, asked, _ = beating(url)
        assert until(lambda: bool(asked))
        heartbeat.close()
    assert asked == [r"\x1b]52;c;aGk=\x07"]


def test_who_took_the_port_of_a_dispatcher_is_not_obeyed_and_gets_no_token(
    anchor: Path, beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]], monkeypatch: pytest.MonkeyPatch
):
    with HeartbeatServer(Tokens(anchor), "127.0.0.1") as server:
        for name, value in server.environment("one").items():
            monkeypatch.setenv(name, value)
    token = Path(os.environ["DUALVIEW_QUEUE_TOKEN_FILE"]).read_text()
    headers: list[str | None] = []
    with fake_queue([(200, b'{"preempt": true}')], headers) as (url, sent):
        Path(os.environ["DUALVIEW_QUEUE_TOKEN_FILE"] + ".url").write_text(url)
        heartbeat, asked, warned = beating(url)
        assert until(lambda: len(sent) > 3)
        heartbeat.close()
    assert asked == []
    assert len(warned) == 1
    assert "the answer is not the queue's" in warned[0]
    assert token.rpartition(".")[2] not in str(headers)
    assert len(set(headers)) > 3, "nothing is sent twice"


@contextmanager
def babbling(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers `{}` once and then with any bytes; its URL, and the first line of each request."""
    requests: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            requests.append(self.request.recv(65536).partition(b"\r\n")[0])
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}" if len(requests) == 1 else answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/heartbeat", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n", b"\x1b]52;c;aGk=\x07\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"HTTP/1.1 200 " + b"x" * 70_000, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000,
    ],
    ids=["no HTTP", "escapes", "no status", "headers", "long", "cut", "nothing", "chunks", "nested"],
)  # fmt: skip
def test_whatever_is_answered_heartbeats_go_on(
    beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]], answer: bytes
):
    with babbling(answer) as (url, requests):
        heartbeat, asked, warned = beating(url)
        assert until(lambda: len(requests) > 4)
        heartbeat.close()
    assert asked == []
    assert len(warned) == 1
    assert warned[0].isprintable()


@contextmanager
def dripping(beginning: bytes) -> Iterator[tuple[str, list[threading.Event]]]:
    """A server that answers a byte at a time and comes to no end; its URL, and the end of each connection."""
    ended: list[threading.Event] = []
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            ended.append(end := threading.Event())
            with suppress(OSError):
                self.request.sendall(beginning)
                while not stop.wait(0.02):
                    self.request.sendall(b"x")
            end.set()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/heartbeat", ended
        finally:
            stop.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_keeps_no_heartbeat_from_the_queue(
    anchor: Path,
    beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    beginning: bytes,
):
    """Who took the port of a former leader holds one thread, however many heartbeats are sent."""
    monkeypatch.setattr("trainer.driver.heartbeat.TIMEOUT_S", 0.3)
    with HeartbeatServer(Tokens(anchor), "127.0.0.1") as server, dripping(beginning) as (url, ended):
        for name, value in server.environment("one").items():
            monkeypatch.setenv(name, value)
        present = Path(os.environ["DUALVIEW_QUEUE_TOKEN_FILE"] + ".url")
        present.write_text(url)
        heartbeat, asked, warned = beating(url)
        assert until(lambda: heartbeat._unanswered > 3)
        assert len(ended) == 1
        present.write_text(server.url)
        server.answer({"one": "makes room for job 9"})
        assert until(lambda: bool(asked))
        heartbeat.close()
        assert not ended[0].is_set()
    assert asked == ["makes room for job 9"]
    assert len(warned) == 1
    assert "no whole answer within 0.3 s" in warned[0]


def test_a_redirection_is_not_followed(beating: Callable[[str], tuple[Heartbeat, list[str], list[str]]]):
    with babbling(b"HTTP/1.1 200 OK\r\n\r\n{}") as (elsewhere, asked_elsewhere):
        moved = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
        with babbling(moved.encode()) as (url, requests):
            heartbeat, asked, warned = beating(url)
            assert until(lambda: len(requests) > 3)
            heartbeat.close()
    assert (asked, asked_elsewhere) == ([], [])
    assert "302" in warned[0]


def test_the_end_of_a_run_is_its_own_whatever_is_answered(tmp_path: Path):
    with babbling(b"garbage\r\n") as (url, requests):
        journal, config = Journal(RunPaths(tmp_path).journal), RunConfig(run=RunSettings(name="mine"))
        heartbeat = Heartbeat(url, config, journal, pytest.fail, pytest.fail, interval_s=3600)
        assert until(lambda: len(requests) == 1)
        heartbeat.close()
    assert len(requests) == 2


@pytest.mark.parametrize("user", ["me:hunter2@", "hunter2@", ":hunter2@", "me:hunter2/@", "me:hunter2?@"])
def test_a_password_in_the_queues_url_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, user: str):
    """Nor is one obeyed that the file of the queue's present URL names."""
    monkeypatch.setenv(QUEUE_URL_VARIABLE, f"http://{user}127.0.0.1:1/heartbeat")
    with pytest.raises(RunInputError, match=QUEUE_URL_VARIABLE) as caught:
        queue_url()
    assert "hunter2" not in str(caught.value)
    assert not is_url(f"http://{user}127.0.0.1:1/heartbeat")
