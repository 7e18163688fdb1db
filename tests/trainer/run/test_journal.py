"""The journal: nothing that was written whole is lost or read twice, whatever a kill leaves behind."""

import json
import math
import multiprocessing
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from trainer.driver.parts import throughput
from trainer.run.journal import (
    CheckpointEvaluated,
    CheckpointSaved,
    Journal,
    Metrics,
    NonFinite,
    Record,
    Started,
    Stopped,
    Warned,
    decode,
    encode,
)

steps, texts = st.integers(0, 10**9), st.text(max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key not in ("kind", "time_ms", "step")), floats, max_size=4
)
scores = st.dictionaries(st.text("abc_", min_size=1, max_size=8), floats, max_size=4)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Started, step=steps, steps=steps, world_size=steps),
    st.builds(Metrics, step=steps, values=values),
    st.builds(CheckpointSaved, step=steps, stalled=floats, seconds=floats),
    st.builds(CheckpointEvaluated, step=steps, scores=scores, samples_png=st.none() | texts),
    st.builds(Warned, step=st.none() | steps, text=texts),
    st.builds(Stopped, step=steps, text=texts),
    st.builds(NonFinite, step=steps, text=texts),
)


def contents(journal: Journal, offset: int = 0) -> list[Record]:
    return [record for record, _ in journal.read(offset)]


def warnings(journal: Journal, offset: int = 0) -> list[str]:
    return [record.text for record in journal.records(Warned, offset)]


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_a_journal_that_does_not_exist_is_empty(journal):
    assert contents(journal) == []
    assert journal.size() == 0


@given(records)
def test_a_record_is_what_its_json_says(record):
    assert decode(json.loads(json.dumps(encode(record)))) == record


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "of a later version", "time_ms": 1, "step": 1},
        {"kind": "start", "time_ms": 1, "step": 1},
        {"time_ms": 1, "step": 1},
        ["metrics"],
        None,
        7,
    ],
)
def test_what_is_no_record_of_this_version_is_passed_over(journal, line):
    journal.path.write_text(json.dumps(line) + "\n")
    journal.append(Warned(text="later"))
    assert warnings(journal) == ["later"]


def test_fields_that_a_later_version_added_do_not_hide_a_record():
    record = Stopped(step=3, text="asked")
    assert decode(encode(record) | {"by": "the queue"}) == record


@given(st.lists(records, max_size=8))
@settings(deadline=None, max_examples=50)
def test_records_come_back_in_order_and_every_offset_is_a_place_to_go_on(tmp_path_factory, written):
    journal = Journal(tmp_path_factory.mktemp("journal") / "j")
    for record in written:
        journal.append(record)
    assert contents(journal) == written
    offsets = [offset for _, offset in journal.read()]
    for number, offset in enumerate(offsets, start=1):
        assert contents(journal, offset) == written[number:]
    assert journal.size() == (offsets[-1] if offsets else 0)


@given(st.integers(1, 200), st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
@settings(deadline=None, max_examples=80)
def test_a_writer_killed_at_any_byte_costs_at_most_its_own_record(tmp_path_factory, cut, later):
    """Truncate the file anywhere in the last line, read, append, and read on from the offset that was reached."""
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal(path)
    journal.append(Warned(text="ü\n\\"))
    kept = path.stat().st_size
    spoilt = Warned(text="x" * 120)
    journal.append(spoilt)
    whole = path.read_bytes()
    length = kept + min(cut, len(whole) - kept - 1)
    path.write_bytes(whole[:length])
    assert [offset for _, offset in journal.read()] == [kept]
    for value in later:
        journal.append(Warned(text="later", step=value))
    expected = [("later", value) for value in later]
    survived = [(spoilt.text, None)] if length == len(whole) - 1 else []
    told = [[(each.text, each.step) for each in journal.records(Warned, offset)] for offset in (kept, length)]
    assert told == [survived + expected, expected]


def test_an_unfinished_line_is_left_for_later(journal):
    journal.append(Warned(text="first"))
    line = json.dumps(encode(Warned(text="second"))).encode()
    with journal.path.open("ab") as file:
        file.write(line[:-1])
        file.flush()
        assert warnings(journal) == ["first"]
        file.write(line[-1:] + b"\n")
    assert warnings(journal) == ["first", "second"]


def test_each_record_is_one_line_of_json_with_its_time(journal):
    journal.append(Warned(step=3, text="two\nlines"))
    (line,) = journal.path.read_text().splitlines()
    record = json.loads(line)
    assert (record["kind"], record["step"], record["text"]) == ("warning", 3, "two\nlines")
    assert record["time_ms"] > 1.6e12


def test_a_block_of_zeros_left_by_a_power_cut_is_skipped(journal):
    journal.append(Warned(text="first"))
    with journal.path.open("ab") as file:
        file.write(bytes(9))
    journal.append(Warned(text="second"))
    assert warnings(journal) == ["first", "second"]


def _append(path, name):
    for number in range(50):
        Journal(path).append(Warned(text=name, step=number))


def test_writers_of_two_attempts_do_not_tear_each_others_lines(journal):
    """A lost worker may still be writing while its successor starts."""
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_append, args=(journal.path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for name in ("a", "b"):
        assert [record.step for record in journal.records(Warned) if record.text == name] == list(range(50))


def test_throughput_is_the_harmonic_mean_of_the_logged_windows(journal):
    for step, rate in enumerate((100.0, 300.0)):
        journal.append(Metrics(step=step, values={"images_per_second": rate}))
    journal.append(CheckpointSaved(step=2, stalled=0.0, seconds=1.0))
    assert throughput(journal) == pytest.approx(150)


def test_a_record_has_the_time_at_which_it_was_made():
    record = Warned(text="now")
    assert replace(record, time_ms=record.time_ms) == record
    assert Warned(text="now", time_ms=1).time_ms == 1


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Metrics(step=1, values={"loss": math.nan, "lr": 0.5, "top": math.inf}))
    assert [record.values for record in journal.records(Metrics)] == [{"lr": 0.5}]
    json.loads((tmp_path / "journal.jsonl").read_text(), parse_constant=pytest.fail)
