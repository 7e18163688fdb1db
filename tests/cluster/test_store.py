"""The store: one transaction per change, one open attempt at a time, and a checked schema version."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import cluster
from cluster import store as store_module
from cluster.errors import InputError, StoreUnavailableError
from cluster.spec import Ending
from cluster.store import SCHEMA_VERSION, Store
from cluster.tables import Base
from tests.cluster.conftest import spec

DONE = Ending(status="succeeded", exit_code=0)


def test_a_job_goes_through_its_attempts(store: Store):
    job = store.submit(spec(priority=3))
    first = store.begin_attempt(job.id)
    assert first is not None
    assert (first.number, first.confirmed, store.job(job.id).state) == (1, False, "running")
    store.confirm(first)
    assert store.attempts()[0].confirmed
    store.end_attempt(first, Ending(status="failed", exit_code=75))
    assert store.job(job.id).state == "queued"
    second = store.begin_attempt(job.id)
    assert second is not None
    assert second.number == 2
    assert second.submission_id != first.submission_id
    store.end_attempt(second, DONE)
    ended = store.job(job.id)
    assert (ended.state, ended.reason) == ("succeeded", "exit 0")
    assert ended.ended_at is not None
    assert [event.text.split()[0] for event in store.events(job.id)] == [
        "submitted", "attempt", "attempt", "attempt", "succeeded:",
    ]  # fmt: skip


def test_one_attempt_is_open_at_a_time(store: Store):
    first, second = store.submit(spec()), store.submit(spec())
    attempt = store.begin_attempt(first.id)
    assert attempt is not None
    assert store.begin_attempt(second.id) is None
    assert store.begin_attempt(first.id) is None
    store.end_attempt(attempt, DONE)
    assert store.begin_attempt(first.id) is None
    assert store.begin_attempt(second.id) is not None


def test_ending_twice_changes_nothing(store: Store):
    job = store.submit(spec())
    assert store.begin_attempt(job.id)
    (one,), (other,) = store.attempts(), store.attempts()
    store.end_attempt(one, DONE)
    assert store.end_attempt(other, Ending(status="failed", exit_code=1)).state == "succeeded"
    store.confirm(other)
    assert (store.job(job.id).reason, store.attempts()) == ("exit 0", [])


def test_an_attempt_that_ends_at_once_holds_its_job_back(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "RETRY_HOLD_S", 30.0)
    job = store.submit(spec())
    for short, held in ((5.0, True), (0.0, False)):
        monkeypatch.setattr(store_module, "SHORT_ATTEMPT_S", short)
        attempt = store.begin_attempt(job.id)
        assert attempt is not None
        before = store.job(job.id).held_until
        store.end_attempt(attempt, Ending(status="failed", exit_code=75))
        assert (store.job(job.id).held_until > max(before, time.time() + 20)) is held


def test_another_cluster_is_refused_while_an_attempt_is_open(store: Store):
    store.bind("http://one:8265", moved=False)
    store.bind("http://two:8265", moved=False)
    job = store.submit(spec())
    assert store.begin_attempt(job.id)
    store.bind("http://two:8265", moved=False)
    with pytest.raises(InputError, match=r"job 1 was started at http://two:8265; allowed: that address, or --moved"):
        store.bind("http://three:8265", moved=False)
    store.bind("http://three:8265", moved=True)
    store.bind("http://three:8265", moved=False)


def test_a_reader_neither_makes_a_queue_nor_waits_for_a_writer(url: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no queue there yet"):
        Store.open(url, create=False)
    assert not Path(url.removeprefix("sqlite:///")).parent.exists()
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.1)
    store = Store.open(url)
    store.submit(spec())
    with sqlite3.connect(store.file, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert len(store.jobs()) == 1
        with pytest.raises(StoreUnavailableError, match="database is locked"):
            store.submit(spec())
        writer.execute("ROLLBACK")
    assert store.submit(spec()).id == 2


def test_three_faults_fail_a_job_and_preemptions_between_do_not_count(store: Store):
    job = store.submit(spec())
    for ending in ("lost", 75, "lost", 75, "lost"):
        attempt = store.begin_attempt(job.id)
        assert attempt is not None
        preempted = Ending(status="failed", exit_code=75)
        store.end_attempt(attempt, preempted if ending == 75 else Ending(status="lost"))
    assert store.job(job.id).state == "failed"


def test_cancelling(store: Store):
    waiting, running = store.submit(spec()), store.submit(spec())
    attempt = store.begin_attempt(running.id)
    assert attempt is not None
    assert store.cancel(waiting.id).state == "cancelled"
    assert store.cancel(running.id).state == "running"
    store.end_attempt(attempt, Ending(status="failed", exit_code=75))
    assert store.job(running.id).state == "cancelled"
    with pytest.raises(InputError, match=r"job 1: has ended \(cancelled\)"):
        store.cancel(waiting.id)
    with pytest.raises(InputError, match="job 7: no such job; allowed: 1 to 2"):
        store.cancel(7)


def test_reasons_are_for_waiting_jobs_only(store: Store):
    waiting, gone = store.submit(spec()), store.submit(spec())
    store.cancel(gone.id)
    store.explain({waiting.id: "behind job 9", gone.id: "behind job 9"})
    assert [job.reason for job in store.jobs()] == ["behind job 9", "cancelled while it waited"]


def test_jobs_survive_a_restart(url: str):
    before = Store.open(url)
    job = before.submit(spec("kept", environment={"A": "b"}, gangs=[[{"CPU": 1.0}], [{"CPU": 2.0}]]))
    after = Store.open(url)
    assert after.id == before.id
    job_after = after.job(job.id)
    assert (job_after.name, job_after.environment, job_after.gangs) == (
        "kept",
        {"A": "b"},
        [[{"CPU": 1.0}], [{"CPU": 2.0}]],
    )


def test_submitting_from_many_places_at_once_loses_nothing(url: str):
    def submit(number: int) -> int:
        return Store.open(url).submit(spec(f"job{number}")).id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(submit, range(24)))
    assert sorted(ids) == list(range(1, 25))
    assert len({job.name for job in Store.open(url).jobs()}) == 24


def test_ids_are_never_used_twice(url: str, store: Store):
    job = store.submit(spec())
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM events")
        connection.execute("DELETE FROM jobs")
    assert store.submit(spec()).id == job.id + 1


def test_the_migrations_make_what_the_store_reads(url: str, store: Store):
    config = Config()
    config.set_main_option("script_location", str(Path(cluster.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        differences = compare_metadata(context, Base.metadata)
    engine.dispose()
    columns = [d for d in differences if isinstance(d, tuple) and d[0] in ("add_table", "remove_table", "add_column")]
    assert columns == []


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE alembic_version SET version_num = '0099'", r"schema version '0099', made by another version.*'0001'"),
        ("DROP TABLE alembic_version", "not the database of a queue"),
        ("DELETE FROM alembic_version", "not the database of a queue"),
    ],
)
def test_a_database_of_another_kind_is_left_alone(url: str, store: Store, statement: str, message: str):
    store.submit(spec())
    file = Path(url.removeprefix("sqlite:///"))
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
        before = list(connection.iterdump())
    with pytest.raises(InputError, match=message):
        Store.open(url)
    with sqlite3.connect(file) as connection:
        assert list(connection.iterdump()) == before


def test_a_file_that_is_no_database(url: str):
    file = Path(url.removeprefix("sqlite:///"))
    file.parent.mkdir()
    file.write_text("hello " * 1000)
    with pytest.raises(InputError, match="file is not a database"):
        Store.open(url)
    assert file.read_text() == "hello " * 1000


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0"])
def test_an_empty_file_is_no_queue_and_stays_as_it_is(url: str, content: bytes):
    file = Path(url.removeprefix("sqlite:///"))
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"allowed: (that|the database) of a queue, or no file yet"):
        Store.open(url)
    assert file.read_bytes() == content


def test_processes_that_make_a_queue_at_once_make_one(url: str):
    file = Path(url.removeprefix("sqlite:///"))
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(8)))
    assert len({store.id for store in stores}) == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("bad", ["", "queue.db", "sqlite:///relative.db", "sqlite://", "postgresql://host/queue"])
def test_malformed_urls(bad: str):
    with pytest.raises(InputError, match=r"allowed: sqlite:////an/absolute/path/queue\.db"):
        Store.open(bad)
