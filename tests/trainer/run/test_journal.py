"""The journal: nothing that was written whole is lost or read twice, whatever a kill leaves behind."""

import json
import multiprocessing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.driver.run import throughput
from trainer.run.journal import Journal

records = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key not in ("kind", "time_ms", "self")),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    max_size=4,
)


def contents(journal: Journal, offset: int = 0) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time_ms"} for record, _ in journal.read(offset)]


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_a_journal_that_does_not_exist_is_empty(journal):
    assert contents(journal) == []
    assert journal.size() == 0


@given(st.lists(records, max_size=8))
@settings(deadline=None, max_examples=50)
def test_records_come_back_in_order_and_every_offset_is_a_place_to_go_on(tmp_path_factory, values):
    journal = Journal(tmp_path_factory.mktemp("journal") / "j")
    for number, value in enumerate(values):
        journal.append(f"kind-{number}", **value)
    expected = [{"kind": f"kind-{number}", **value} for number, value in enumerate(values)]
    assert contents(journal) == expected
    offsets = [offset for _, offset in journal.read()]
    for number, offset in enumerate(offsets, start=1):
        assert contents(journal, offset) == expected[number:]
    assert journal.size() == (offsets[-1] if offsets else 0)


@given(st.integers(1, 200), st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
@settings(deadline=None, max_examples=80)
def test_a_writer_killed_at_any_byte_costs_at_most_its_own_record(tmp_path_factory, cut, later):
    """Truncate the file anywhere in the last line, read, append, and read on from the offset that was reached."""
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal(path)
    journal.append("first", text="ü\n\\")
    kept = path.stat().st_size
    journal.append("cut", text="x" * 120)
    whole = path.read_bytes()
    length = kept + min(cut, len(whole) - kept - 1)
    path.write_bytes(whole[:length])
    reached = [(record["kind"], offset) for record, offset in journal.read()]
    assert reached == [("first", kept)]
    for value in later:
        journal.append("later", value=value)
    expected = [{"kind": "later", "value": value} for value in later]
    survived = [{"kind": "cut", "text": "x" * 120}] if length == len(whole) - 1 else []
    assert contents(journal, kept) == survived + expected
    assert contents(journal, length) == expected


def test_an_unfinished_line_is_left_for_later(journal):
    journal.append("first")
    with journal.path.open("ab") as file:
        file.write(b'{"kind":"second"')
        file.flush()
        assert [r["kind"] for r, _ in journal.read()] == ["first"]
        file.write(b"}\n")
    assert [r["kind"] for r, _ in journal.read()] == ["first", "second"]


def test_each_record_is_one_line_of_json_with_its_time(journal):
    journal.append("metrics", step=3, text="two\nlines")
    (line,) = journal.path.read_text().splitlines()
    record = json.loads(line)
    assert record["text"] == "two\nlines"
    assert record["time_ms"] > 1.6e12


def test_a_block_of_zeros_left_by_a_power_cut_is_skipped(journal):
    journal.append("first")
    with journal.path.open("ab") as file:
        file.write(bytes(9))
    journal.append("second")
    assert [r["kind"] for r, _ in journal.read()] == ["first", "second"]


def _append(path, name):
    for number in range(50):
        Journal(path).append(name, number=number)


def test_writers_of_two_attempts_do_not_tear_each_others_lines(journal):
    """A lost worker may still be writing while its successor starts."""
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_append, args=(journal.path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    seen = contents(journal)
    for name in ("a", "b"):
        assert [r["number"] for r in seen if r["kind"] == name] == list(range(50))


def test_throughput_is_the_harmonic_mean_of_the_logged_windows(journal):
    for rate in (100.0, 300.0):
        journal.append("metrics", images_per_second=rate)
    journal.append("checkpoint", seconds=1)
    assert throughput(journal) == pytest.approx(150)
