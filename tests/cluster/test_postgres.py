"""A queue in Postgres, with a real server: several dispatchers of which one leads, outages, and files on S3."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select, update

from cluster.__main__ import main
from cluster.admission import Wait
from cluster.database import postgres as postgres_module
from cluster.database.lead import Lead, now
from cluster.database.tables import Queue
from cluster.errors import DeposedError, InputError, RayUnavailableError, StoreUnavailableError
from cluster.files import log_name
from cluster.reasons import Reason
from cluster.resources import DRIVER
from cluster.spec import Asked, Beat, Ending
from cluster.store import Selection, Store
from tests.cluster.conftest import spec
from tests.cluster.test_dispatcher import FakeRay, check, drain, fill, made, script
from tests.conftest import ROOT
from tests.servers.postgres import Postgres

DONE = Ending(status="succeeded", exit_code=0)


@pytest.fixture
def store(postgres: str, tmp_path: Path) -> Store:
    return Store.open(postgres, files=str(tmp_path / "files"))


@pytest.fixture
def lead() -> Iterator[Callable[[Store], None]]:
    """Lead with a store: as a dispatcher does, or not at all if another leads."""
    with ExitStack() as stack:

        def begin(store: Store) -> None:
            tries = itertools.count()
            store.lead = stack.enter_context(store.database.lead(lambda text: None, lambda seconds: next(tries) > 0))

        yield begin


def eventually(what: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------ the queue itself


def test_a_queue_is_made_once_and_found_again(postgres: str, tmp_path: Path):
    with pytest.raises(InputError, match="no queue there yet"):
        Store.open(postgres, create=False)
    with pytest.raises(InputError, match="needs a place for snapshots and logs"):
        Store.open(postgres)
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(postgres, files=f"file://{tmp_path}/files"), range(8)))
    assert len({store.id for store in stores}) == 1
    found = Store.open(postgres)
    assert (found.files.uri, found.anchor) == (str(tmp_path / "files"), tmp_path / "files" / "queue")
    with pytest.raises(InputError, match=r"--files /else: this queue keeps its files at .*/files; allowed: that"):
        Store.open(postgres, files="/else")


def test_the_tables_of_something_else_are_left_alone(store: Store, postgres: str):
    with store.session() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(InputError, match=r"schema version '0099', made by another version of DualView"):
        Store.open(postgres)
    with store.session() as session:
        session.connection().exec_driver_sql("DROP TABLE alembic_version")
    with pytest.raises(InputError, match="not the database of a queue"):
        Store.open(postgres)


def test_an_earlier_version_is_not_upgraded_under_its_dispatcher(store: Store, postgres: str, lead):
    lead(store)
    with store.session() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    with pytest.raises(InputError, match="of an earlier version, and its dispatcher runs"):
        Store.open(postgres)


def test_a_name_selects_as_it_is_written(store: Store):
    for name in ("Digits-1", "digits-1", "digits_1"):
        store.submit(spec(name))
    assert [job.name for job in store.select(Selection(name="digits-*"))] == ["digits-1"]
    assert [job.name for job in store.select(Selection(name="d*_1"))] == ["digits_1"]


def test_words_that_postgres_cannot_hold_are_kept_as_far_as_it_can(store: Store):
    job = store.submit(spec(environment={"X": "\udcff"}))
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    store.note(job.id, "cut\0off \udcff")
    assert store.job(job.id).reason == "cut\ufffdoff ?"
    store.end_attempt(attempt, Ending(status="failed", exit_code=1, message="\0"))
    assert (store.job(job.id).state, store.job(job.id).environment) == ("failed", {"X": "\udcff"})


def test_clients_that_submit_the_same_at_once_get_one_job(store: Store, postgres: str):
    stores = [Store.open(postgres) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        ids = {job.id for job in pool.map(lambda each: each.submit(spec(key="same")), stores)}
        others = {job.id for job in pool.map(lambda each: each.submit(spec()), stores * 4)}
    assert len(ids) == 1
    assert len(others) == 40
    assert store.count(Selection()) == 41


@pytest.mark.parametrize("kill", range(1, 120, 7))
def test_killed_between_two_effects(postgres: str, kill: int, tmp_path: Path):
    Store.open(postgres, files=str(tmp_path / "files"))
    store, ray = fill(postgres), FakeRay(script())
    drain(postgres, ray, [kill])
    check(store, ray)


# ------------------------------------------------------------------ who leads

LEADER = """
import sys, threading, time
from cluster.dispatching import print_line
from cluster.errors import DeposedError
from cluster.store import Store

store = Store.open(sys.argv[1])
with store.database.lead(print_line, threading.Event().wait) as lead:
    store.lead = lead
    print("leads", lead.epoch, flush=True)
    try:
        while True:
            with store.session() as session:
                session.connection().exec_driver_sql("SELECT 1")
                if len(sys.argv) > 2:  # be paused here, while it holds the queue
                    print("holds", flush=True)
                    time.sleep(2)
            if len(sys.argv) <= 2:
                time.sleep(0.02)
    except DeposedError as error:
        print(f"deposed: {error}", flush=True)
"""


@pytest.fixture
def leader(store: Store, postgres: str) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a process that leads the queue and writes all the time."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", LEADER, postgres, *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSTOP])
def test_another_takes_over_within_ten_seconds(leader, how: signal.Signals):
    first = leader()
    assert line(first) == "leads 1"
    second = leader()
    assert line(second).endswith("dispatches; this one takes over if that ends")
    began = time.monotonic()
    first.send_signal(how)
    assert line(second) == "leads 2"
    assert time.monotonic() - began < 10
    if how == signal.SIGSTOP:
        first.send_signal(signal.SIGCONT)
        assert line(first).startswith("deposed: ")
        assert first.wait(30) == 0
        assert second.poll() is None


@pytest.mark.slow
def test_one_that_is_paused_while_it_holds_the_queue_loses_it(leader):
    first = leader("holds")
    assert [line(first), line(first)] == ["leads 1", "holds"]
    second = leader()
    first.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    while "leads 2" not in line(second):
        assert time.monotonic() - began < 10
    first.send_signal(signal.SIGCONT)
    assert "leads" not in (rest := first.communicate(timeout=30)[0])
    assert "terminating connection due to idle-in-transaction timeout" in rest or "deposed" in rest


def test_one_that_ends_gives_the_lead_back(store: Store):
    reports: list[str] = []
    with store.database.lead(reports.append, lambda seconds: False) as lead:
        assert lead is not None
        assert store.database.is_led()
        with Store.open(store.database.name).database.lead(reports.append, lambda seconds: True) as other:
            assert other is None
        assert reports == [f"{os.uname().nodename}, process {os.getpid()} dispatches; this one takes over if that ends"]
    assert not store.database.is_led()
    with store.database.lead(reports.append, lambda seconds: True) as next_one:
        assert next_one is not None
        assert next_one.epoch == lead.epoch + 1


@pytest.mark.parametrize("effect", ["begin_attempt", "confirm", "observe", "end_attempt", "explain", "hear", "ask"])
def test_a_deposed_dispatcher_changes_nothing(store: Store, postgres: str, lead, effect: str):
    """Whatever it was about to write when it was paused."""
    job = store.submit(spec(command=["works"]))
    waiting = store.submit(spec(command=["works"], priority=-1, driver={"CPU": 2.0}))
    ray = FakeRay({"works": [0, 0]}, runs=10**6)
    lead(store)
    dispatcher = made(store, ray)
    dispatcher.step()
    [attempt] = store.attempts(job.id)

    def seize(*arguments: object) -> object:
        with Store.open(postgres).session() as session:
            session.execute(update(Queue).values(epoch=Queue.epoch + 1, holder="x"))
        return original(*arguments)

    original = getattr(store, effect)
    before = Store.open(postgres)
    expected = [(each.state, each.reason) for each in before.jobs()]
    calls = {
        "begin_attempt": (waiting.id,), "confirm": (attempt,), "observe": (attempt, True, "x"),
        "end_attempt": (attempt, DONE), "explain": ({waiting.id: Wait(Reason.HELD, "x")},),
        "hear": ({attempt.submission_id: Beat(step=5)},), "ask": (attempt, Asked(to="leave", reason="x")),
    }  # fmt: skip
    with pytest.raises(DeposedError, match="another dispatcher has taken over"):
        seize(*calls[effect])
    assert [(each.state, each.reason) for each in before.jobs()] == expected
    assert [(each.id, each.ended_at, each.asked, each.step) for each in before.attempts()] == [
        (attempt.id, None, None, None)
    ]


@pytest.mark.parametrize("about_to", ["stop", "start"])
def test_a_deposed_dispatcher_asks_nothing_of_ray(store: Store, about_to: str):
    """It meant attempt 1; another leads meanwhile, and may have begun attempt 2."""
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0]}, runs=10**6)
    dispatcher = made(store, ray)
    dispatcher.step()
    if about_to == "stop":
        store.cancel(job.id)
    else:
        store.submit(spec(command=["works"]))
    with store.session() as session:
        epoch, holder = session.execute(select(Queue.epoch, Queue.holder)).one()
    store.lead = Lead(epoch, holder, until=now())
    with pytest.raises(DeposedError, match="not renewed in time"):
        dispatcher.step()
    assert ray.stopped == []
    assert len(ray.started) == 1


def test_a_deposed_dispatcher_leaves_the_output_that_another_has_kept(store: Store):
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0]}, runs=1)
    dispatcher = made(store, ray)
    dispatcher.step()
    [attempt] = store.attempts(job.id)

    def log(submission_id: str) -> Iterator[bytes]:
        yield b"the first half"
        store.files.write(log_name(submission_id), [b"all of it, by another"])
        store.lead = Lead(0, "", until=0.0)
        raise RayUnavailableError("the connection broke while it was paused")

    ray.log = log  # type: ignore[method-assign,assignment]
    with pytest.raises(DeposedError):
        dispatcher.step()
    assert b"".join(store.files.read(log_name(attempt.submission_id))) == b"all of it, by another"


def test_a_lead_of_the_same_epoch_is_another(store: Store):
    """As after a failover to a server that had not heard of the first."""
    store.lead = Lead(0, "one")
    with pytest.raises(DeposedError, match="another dispatcher has taken over"):
        store.submit(spec())


def test_one_cluster_may_have_several_addresses(store: Store):
    job = store.submit(spec())
    store.bind("http://127.0.0.1:8265", moved=False)
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    with pytest.raises(InputError, match="was started at http://127"):
        store.bind("http://10.0.0.1:8265", moved=False, knows=lambda submission_id: False)
    store.bind("http://10.0.0.1:8265", moved=False, knows=lambda submission_id: submission_id == attempt.submission_id)


def test_a_step_of_any_size_is_heard(store: Store):
    job = store.submit(spec())
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    store.hear({attempt.submission_id: Beat(step=2**53 - 1, saved_step=3 * 10**9)})
    [attempt] = store.attempts(job.id)
    assert (attempt.step, attempt.saved_step) == (2**53 - 1, 3 * 10**9)


def test_many_jobs_at_once_do_not_cost_the_lead(store: Store):
    with store.database.lead(lambda text: None, lambda seconds: False) as lead:
        assert lead is not None
        jobs = store.submit_all([spec(key=f"{index}") for index in range(3000)], array=True)
        lead.check()
    ids = [job.id for job, _ in jobs]
    assert ids == list(range(ids[0], ids[0] + 3000))
    assert {(job.array_id, (job.array_index or 0) - job.id) for job in store.jobs()} == {(ids[0], -ids[0])}


def test_what_ray_accepts_of_a_deposed_dispatcher_is_stopped(store: Store):
    """Its request was under way when another took over, found nothing in Ray and recorded the end."""
    job = store.submit(spec(command=["works"]))
    ray = FakeRay({"works": [0, 0]}, runs=10**6)
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    store.cancel(job.id)
    dispatcher = made(store, ray)
    dispatcher.step()
    assert store.job(job.id).state == "cancelled"
    placement = {"DUALVIEW_PLACEMENT": '{"bundles": []}', "DUALVIEW_JOB": "1"}
    ray.submit(attempt.submission_id, ["works"], Path("x"), placement, DRIVER, "a")
    dispatcher._look_at = 0.0
    dispatcher.step()
    assert ray.stopped == [attempt.submission_id]
    dispatcher._look_at = 0.0
    dispatcher.step()
    assert ray.stopped == [attempt.submission_id]


# ------------------------------------------------------------------ outages


def test_a_restarted_server_loses_nothing(tmp_path: Path):
    with Postgres() as server:
        store = Store.open(server.database(), files=str(tmp_path / "files"))
        job = store.submit(spec(command=["works"]))
        ray, reports = FakeRay({"works": [0]}, runs=10**6), list[str]()
        stop = threading.Event()
        thread = threading.Thread(target=made(store, ray, reports.append).run, args=(0.05, False, stop), daemon=True)
        thread.start()
        eventually(lambda: store.job(job.id).state == "running")
        server.stop(signal.SIGQUIT)
        with pytest.raises(StoreUnavailableError, match="the queue's database postgresql://postgres@/queue0"):
            store.job(job.id)
        eventually(lambda: any(text.endswith("; trying again") for text in reports))
        server.start()
        eventually(lambda: "Ray and the queue's database are available again" in reports)
        ray.left[ray.started[0]] = 1
        eventually(lambda: store.job(job.id).state == "succeeded")
        stop.set()
        thread.join(30)
    assert len(ray.started) == 1


def test_a_lead_outlives_a_restart_of_the_server_or_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres_module, "LEASE_S", 2.0)
    monkeypatch.setattr(postgres_module, "RENEW_S", 0.2)
    with Postgres() as server:
        store = Store.open(server.database(), files=str(tmp_path / "files"))
        with store.database.lead(lambda text: None, lambda seconds: False) as lead:
            assert lead is not None
            other = Store.open(store.database.name)
            server.stop(signal.SIGQUIT)
            with pytest.raises(StoreUnavailableError):
                other.database.is_led()
            server.start()
            until = lead.until
            eventually(lambda: lead.until > until)
            lead.check()
            server.stop(signal.SIGQUIT)
            eventually(lambda: now() > lead.until)
            with pytest.raises(DeposedError, match="the lead was not renewed in time"):
                lead.check()


def test_a_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--store", f"postgresql://me:secret@/queue?host={tmp_path}", "list"]) == 1
    assert main(["--store", "postgresql://me:secret@127.0.0.1:1/queue", "list"]) == 1
    errors = capsys.readouterr().err
    assert main(["--store", "postgresql://127.0.0.1:1/queue?user=me&password=secret", "list"]) == 1
    assert main(["--store", "postgresql:/me:secret@127.0.0.1/queue", "list"]) == 2
    errors += capsys.readouterr().err
    assert errors.startswith("error: --store postgresql://me:***@/queue?host=")
    assert "refused" in errors
    assert "secret" not in errors
