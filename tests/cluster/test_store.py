"""The store: one transaction per change, one open attempt of a job at a time, a schema that is brought up to date."""

import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from cluster import snapshot, store as store_module
from cluster.accounts import Accounts
from cluster.admission import Wait
from cluster.database import lock, schema, sqlite
from cluster.database.tables import HALF_LIFE_S, Base, held
from cluster.errors import InputError, StoreUnavailableError
from cluster.reasons import Reason
from cluster.spec import Asked, Beat, Ending
from cluster.store import Glance, Placed, Selection, Store
from tests.cluster.conftest import spec
from tests.conftest import ROOT

DONE = Ending(status="succeeded", exit_code=0)


def test_a_job_goes_through_its_attempts(store: Store):
    job = store.submit(spec(priority=3))
    first = store.begin_attempt(job.id)
    assert first is not None
    assert (first.number, first.confirmed, store.job(job.id).state) == (1, False, "starting")
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


def test_one_attempt_of_a_job_is_open_at_a_time(store: Store):
    first, second = store.submit(spec()), store.submit(spec())
    attempt = store.begin_attempt(first.id)
    assert attempt is not None
    assert store.begin_attempt(first.id) is None
    assert store.begin_attempt(second.id) is not None
    store.end_attempt(attempt, DONE)
    assert store.begin_attempt(first.id) is None


def test_ending_twice_changes_nothing(store: Store):
    job = store.submit(spec())
    assert store.begin_attempt(job.id)
    (one,), (other,) = store.attempts(), store.attempts()
    store.end_attempt(one, DONE)
    assert store.end_attempt(other, Ending(status="failed", exit_code=1)).state == "succeeded"
    store.confirm(other)
    assert (store.job(job.id).reason, store.attempts()) == ("exit 0", [])


def test_faults_hold_a_job_back_longer_each_time_and_preemptions_do_not(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "BACK_OFF_S", 100.0)
    monkeypatch.setattr(store_module, "SHORT_ATTEMPT_S", 0.0)
    job = store.submit(spec(retries=9))
    expected = [100, 200, 400, 600, 600]
    for ending in ("lost", 75, "lost", 75, "lost", "lost", "lost"):
        attempt = store.begin_attempt(job.id)
        assert attempt is not None
        before = store.job(job.id).held_until
        store.end_attempt(attempt, Ending(status="failed", exit_code=75) if ending == 75 else Ending(status="lost"))
        until = store.job(job.id).held_until
        assert until == before if ending == 75 else abs(until - time.time() - expected.pop(0)) < 20
    monkeypatch.setattr(store_module, "SHORT_ATTEMPT_S", 5.0)  # one that gives its machines back as soon as it has them
    attempt = store.begin_attempt(job.id)
    assert attempt is not None
    store.end_attempt(attempt, Ending(status="failed", exit_code=75))
    assert abs(store.job(job.id).held_until - time.time() - 100) < 20


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
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    store = Store.open(url)
    store.submit(spec())
    with sqlite3.connect(store.anchor, isolation_level=None) as writer:
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
    assert store.cancel(running.id).state == "starting"
    store.end_attempt(attempt, Ending(status="failed", exit_code=75))
    assert store.job(running.id).state == "cancelled"
    with pytest.raises(InputError, match=r"job 1: has ended \(cancelled\)"):
        store.cancel(waiting.id)
    with pytest.raises(InputError, match="job 7: no such job; allowed: 1 to 2"):
        store.cancel(7)


def test_reasons_are_for_waiting_jobs_only(store: Store):
    waiting, gone = store.submit(spec()), store.submit(spec())
    store.cancel(gone.id)
    wait = Wait(Reason.RESOURCES, "needs much", 5.0)
    store.explain({waiting.id: wait, gone.id: wait, 99: wait})
    store.explain({})
    assert [(job.reason, job.reason_code, job.start_at) for job in store.jobs()] == [
        ("needs much", "resources", 5.0), ("cancelled while it waited", "", None),
    ]  # fmt: skip
    assert store.begin_attempt(waiting.id)
    assert (store.job(waiting.id).reason_code, store.job(waiting.id).start_at) == ("", None)


def test_jobs_survive_a_restart(url: str):
    before = Store.open(url)
    job = before.submit(spec("kept", environment={"A": "b"}, gangs=[[{"CPU": 1.0}], [{"CPU": 2.0}]]))
    after = Store.open(url)
    assert after.id == before.id
    job_after = after.job(job.id)
    assert (job_after.name, job_after.environment, job_after.gangs) == (
        "kept",
        {"A": "b"},
        [[{"resources": {"CPU": amount}, "labels": {}}] for amount in (1.0, 2.0)],
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
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.VERSION
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
        ("UPDATE alembic_version SET version_num = '0099'", r"schema version '0099', made by another version.*'0003'"),
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
    with pytest.raises(
        InputError, match=r"allowed: (that of a queue, or an empty one|the database of a queue, or no file yet)"
    ):
        Store.open(url)
    assert file.read_bytes() == content


def test_processes_that_make_a_queue_at_once_make_one(url: str):
    file = Path(url.removeprefix("sqlite:///"))
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(8)))
    assert len({store.id for store in stores}) == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "queue.db",
        "sqlite:///relative.db",
        "sqlite://",
        "postgresql://me:secret@host",
        "mysql://me:secret@host/queue",
        "postgresql://me:secret@host:x/q",
    ],
)
def test_malformed_urls(bad: str):
    with pytest.raises(InputError, match=r"allowed: sqlite:////an/absolute/path/queue\.db") as caught:
        Store.open(bad)
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------ what people do with jobs


def placed(**amounts: float) -> Placed:
    return Placed("a", (), {"a": amounts}, share=0.5)


def begin(store: Store, job_id: int, **amounts: float):
    attempt = store.begin_attempt(job_id, placed(**amounts))
    assert attempt is not None
    return attempt


def test_the_same_job_is_there_once_while_it_is_unfinished(store: Store):
    first = store.submit(spec(key="same"))
    assert store.submit_all([spec(key="same"), spec("other", key="other"), spec(key=None)])[0][0].id == first.id
    assert [new for _, new in store.submit_all([spec(key="same"), spec(key="third")])] == [False, True]
    store.cancel(first.id)
    assert store.submit(spec(key="same")).id != first.id


def test_many_who_submit_the_same_at_once_get_one_job(url: str):
    def submit(_: int) -> int:
        return Store.open(url).submit(spec(key="same")).id

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(submit, range(20))) == {1}


def test_an_array_is_submitted_whole_or_not_at_all(store: Store):
    specs = [spec(f"row{index}", queue="default" if index < 2 else "nowhere") for index in range(3)]
    with pytest.raises(
        InputError, match=r"queue 'nowhere': no such queue; allowed: default \(`queues set NAME` makes one"
    ):
        store.submit_all(specs)
    assert store.jobs() == []
    jobs = [job for job, _ in store.submit_all(specs[:2], array=True)]
    assert [(job.array_id, job.array_index) for job in jobs] == [(1, 0), (1, 1)]
    assert [job.id for job in store.select(Selection(array=1))] == [1, 2]


def test_a_dependency_has_to_exist(store: Store):
    with pytest.raises(InputError, match="job 1: no such job; allowed: submit one first"):
        store.submit(spec(after={1: "ok"}))  # which is itself, or one in a circle: ids are given in order
    assert store.jobs() == []


def test_hold_release_and_park(store: Store):
    job = store.submit(spec(), hold=True)
    assert store.begin_attempt(job.id) is None
    store.release(job.id)
    attempt = begin(store, job.id)
    store.hold(job.id)
    store.end_attempt(attempt, Ending(status="failed", exit_code=75))
    assert store.job(job.id).hold == "held"
    store.release(job.id)
    store.park(job.id, "cannot be read")
    assert store.begin_attempt(job.id) is None
    assert (store.job(job.id).reason, store.job(job.id).reason_code) == ("cannot be read", "parked")
    store.release(job.id)
    assert begin(store, job.id).number == 2


def test_requeue(store: Store):
    job = store.submit(spec(retries=0, key="same"))
    with pytest.raises(InputError, match="job 1: waits already; allowed: a job that runs or has ended"):
        store.requeue(job.id)
    store.end_attempt(begin(store, job.id), Ending(status="lost"))
    assert store.job(job.id).state == "failed"
    with pytest.raises(InputError, match=r"job 1: .*\.zip was removed when it had ended; allowed: to submit it again"):
        store.requeue(job.id)
    store.files.write(snapshot.name_of(job.snapshot), [])
    twin = store.submit(spec(key="same"))
    with pytest.raises(InputError, match="job 1: job 2 does the same and is queued; allowed: one of the two"):
        store.requeue(job.id)
    store.cancel(twin.id)
    again = store.requeue(job.id)
    assert (again.state, again.ended_at, again.cancel_requested) == ("queued", None, False)
    attempt = begin(store, job.id)
    store.requeue(job.id)
    assert store.attempts()[0].asked == "leave"
    with pytest.raises(InputError, match="job 1: was asked to leave before"):
        store.requeue(job.id)
    store.end_attempt(attempt, Ending(status="stopped"))
    assert store.job(job.id).state == "queued"


def test_change(store: Store):
    accounts = Accounts(store)
    accounts.set_queue("vision", max_priority=5)
    job = store.submit(spec(priority=7))
    with pytest.raises(InputError, match="--priority 7: queue vision allows at most 5"):
        store.change(job.id, queue="vision")
    assert store.change(job.id, queue="vision", priority=5, max_runtime_s=60.0).queue == "vision"
    assert store.events(job.id)[-1].text == "changed: queue = vision, priority = 5, max_runtime_s = 60.0"
    with pytest.raises(InputError, match="--priority 6: queue vision allows at most 5"):
        store.submit(spec(priority=6, queue="vision"))
    store.cancel(job.id)
    with pytest.raises(InputError, match="has ended"):
        store.change(job.id, priority=1)


def test_cancel_now_is_for_a_cluster_that_is_gone(store: Store):
    job = store.submit(spec())
    begin(store, job.id)
    assert store.cancel(job.id, now=True).state == "cancelled"
    assert store.attempts() == []
    assert store.attempts(job.id)[0].reason == "cancelled without asking Ray"


def test_what_is_asked_is_asked_once_and_cancelling_goes_before(store: Store):
    job, other = store.submit(spec()), store.submit(spec())
    attempt = begin(store, job.id)
    assert store.glance(0.0).owed == set()
    assert store.ask(attempt, Asked(to="leave", reason="makes room for job 2"), by=other.id)
    assert not store.ask(attempt, Asked(to="finish", reason="late"))
    assert store.glance(time.time() - 60) == Glance(draining=False, preempted=1, owed=frozenset({other.id}))
    assert store.glance(time.time() + 60).preempted == 0
    store.cancel(job.id)
    assert store.end_attempt(attempt, Ending(status="failed", exit_code=75)).state == "cancelled"
    assert not store.ask(attempt, Asked(to="leave"))
    begin(store, other.id)
    assert store.glance(0.0).owed == set()


def test_progress_is_judged_by_what_was_saved(store: Store):
    job = store.submit(spec(retries=1))
    outcomes: list[str] = []
    for saved in (10, 20, 20, None, 20):
        attempt = begin(store, job.id)
        if saved is not None:
            store.hear({attempt.submission_id: Beat(step=25, saved_step=saved, at=1.0), "another": Beat()})
        store.end_attempt(attempt, Ending(status="failed", exit_code=75))
        outcomes.append(store.job(job.id).state)
    assert outcomes == ["queued", "queued", "queued", "queued", "failed"]
    assert "without a newer checkpoint" in store.job(job.id).reason


def test_who_leaves_at_its_limit_again_and_again_with_nothing_to_go_on_from_fails(store: Store):
    job = store.submit(spec(retries=1))
    outcomes: list[str] = []
    for saved, code in ((10, 75), (20, -15), (20, 75), (None, 75), (None, -15)):
        attempt = begin(store, job.id)
        store.hear({attempt.submission_id: Beat(step=25, saved_step=saved, at=1.0)} if saved is not None else {})
        store.ask(attempt, Asked(to="limit", reason="its time is up"))
        store.end_attempt(attempt, Ending(status="stopped" if code < 0 else "failed", exit_code=code))
        outcomes.append(store.job(job.id).state)
    assert outcomes == ["queued"] * 4 + ["failed"]
    assert [each.fault for each in store.attempts(job.id)] == [False, False, True, False, True]
    assert store.attempts(job.id)[2].reason == (
        "its time is up; left after a checkpoint (exit 75), with nothing new to go on from; it will be tried again"
    )


def test_a_command_that_soon_exits_with_75_again_and_again_fails(store: Store):
    """It says nothing of checkpoints: it is believed once, and as often as it has run for a while."""
    job = store.submit(spec(retries=1))
    for ran, state in ((6.0, "queued"), (400.0, "queued"), (6.0, "queued"), (6.0, "queued"), (6.0, "failed")):
        attempt = begin(store, job.id)
        with store.session() as session:
            session.get_one(type(attempt), attempt.id).began_at -= ran
        store.end_attempt(attempt, Ending(status="failed", exit_code=75))
        assert store.job(job.id).state == state


def test_selections(store: Store):
    for name, user, queue in (("a_1", "me", "default"), ("ab1", "you", "default"), ("b%", "me", "default")):
        store.submit(spec(name if "%" not in name else "b-2", user=user, queue=queue))
    ids = lambda **fields: [job.id for job in store.select(Selection(**fields))]  # noqa: E731
    assert ids() == [1, 2, 3]
    assert ids(name="a*") == [1, 2]
    assert ids(name="a_*") == [1]  # no wildcard of SQL
    assert ids(user="me") == [1, 3]
    assert ids(user="m\\e") == ids(user="me\\") == []  # nothing of SQL's is special
    assert ids(user="m*", name="b*") == [3]
    assert ids(ids=[2, 9]) == [2]
    assert ids(states=["running"]) == []
    assert [job.id for job in store.select(Selection(), newest=2)] == [2, 3]
    assert [job.id for job in store.select(Selection(), newest=2, skip=2)] == [1]
    assert store.count(Selection(user="me")) == 2


# ------------------------------------------------------------------ queues


def test_usage_decays_with_its_half_life(store: Store):
    accounts = Accounts(store)
    job = store.submit(spec())
    attempt = begin(store, job.id)
    now = attempt.began_at + HALF_LIFE_S
    assert accounts.terms(now)["default"].usage == pytest.approx(0.25)  # half of the cluster, for one half-life
    with store.session() as session:
        stored = session.get_one(type(attempt), attempt.id)
        stored.began_at -= HALF_LIFE_S
    store.end_attempt(attempt, DONE)
    assert accounts.terms(time.time())["default"].usage == pytest.approx(0.25, rel=1e-3)
    assert accounts.terms(time.time() + HALF_LIFE_S)["default"].usage == pytest.approx(0.125, rel=1e-3)
    assert held(1.0, -5.0) == 0.0


def test_what_users_have_used(store: Store):
    accounts = Accounts(store)
    for user, amounts in (("me", {"CPU": 4.0, "GPU": 1.0}), ("you", {"CPU": 8.0})):
        attempt = begin(store, store.submit(spec(user=user)).id, **amounts)
        with store.session() as session:
            session.get_one(type(attempt), attempt.id).began_at -= 7200
        store.hear({attempt.submission_id: Beat(step=25, saved_step=20, at=1.0)})
        if user == "me":
            store.ask(attempt, Asked(to="leave", reason="x"), by=attempt.job_id)
            store.end_attempt(attempt, Ending(status="stopped", exit_code=-9))
    mine, yours = accounts.usage("user", time.time() - 86400, time.time())
    assert (mine.group, mine.jobs, mine.lost_steps, mine.preemptions) == ("me", 1, 5, 1)
    assert (mine.cpu_hours, mine.gpu_hours) == (pytest.approx(8, rel=1e-2), pytest.approx(2, rel=1e-2))
    assert (yours.group, yours.lost_steps, yours.gpu_hours) == ("you", 0, 0)  # it still runs
    assert yours.cpu_hours == pytest.approx(16, rel=1e-2)
    [all_] = accounts.usage("queue", time.time() - 3600, time.time())
    assert (all_.group, all_.jobs) == ("default", 2)
    assert all_.cpu_hours == pytest.approx(12, rel=1e-2)


def test_queues(store: Store):
    accounts = Accounts(store)
    accounts.set_queue("vision", weight=2.0, guaranteed=0.5)
    with pytest.raises(
        InputError, match=r"queue text: the queues would be guaranteed 1\.10 of the cluster; allowed: 1"
    ):
        accounts.set_queue("text", guaranteed=0.6)
    with pytest.raises(InputError, match=r"queue vision: guaranteed 0\.5, at most 0\.4"):
        accounts.set_queue("vision", maximum=0.4)
    assert [team.name for team in accounts.queues()] == ["default", "vision"]
    assert accounts.terms(time.time())["vision"].weight == 2.0
    job = store.submit(spec(queue="vision"))
    assert accounts.counts() == {"vision": {"queued": 1}}
    with pytest.raises(InputError, match="queue vision: has 1 unfinished jobs"):
        accounts.remove_queue("vision")
    store.cancel(job.id)
    accounts.remove_queue("vision")
    with pytest.raises(InputError, match="queue default: is the one of jobs that name none"):
        accounts.remove_queue("default")
    assert store.job(job.id).queue == "vision"


# ------------------------------------------------------------------ versions


def test_an_earlier_version_is_not_upgraded_under_its_dispatcher(store: Store, url: str):
    with store.session() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with (
        lock.hold(store.anchor),
        pytest.raises(InputError, match="of an earlier version, and its dispatcher runs"),
    ):
        Store.open(url)


def test_there_and_back_keeps_every_row(tmp_path: Path):
    """The queue of an earlier version, upgraded, taken back and upgraded again."""
    shutil.copytree(ROOT / "tests" / "made_before" / "2026-11-28" / "queue", tmp_path / "queue")
    file = tmp_path / "queue" / "queue.db"
    before = rows_of(file)
    Store.open(f"sqlite:///{file}")
    assert rows_of(file) == before
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    engine = sqlite._engine(file)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    engine.dispose()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert [row[1] for row in connection.execute("PRAGMA table_info(jobs)")][-1] == "ended_at"
    assert rows_of(file) == before
    store = Store.open(f"sqlite:///{file}")
    assert rows_of(file) == before
    assert store.submit(spec()).id == max(row[0] for row in before["jobs"]) + 1
    with store.session() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []


def rows_of(file: Path) -> dict[str, list[tuple]]:
    """The columns of version 0001, of every row."""
    columns = {
        "jobs": "id, name, command, priority, snapshot, environment, gangs, state, cancel_requested, submitted_at",
        "attempts": "id, job_id, number, submission_id, confirmed, began_at, ended_at, status, exit_code, reason",
        "events": "id, job_id, at, text",
        "queue": "id, address",
    }
    with sqlite3.connect(file) as connection:
        found = ((name, f"SELECT {each} FROM {name} ORDER BY id") for name, each in columns.items())
        return {name: connection.execute(query).fetchall() for name, query in found}
