"""Bundles: as they are written on the command line, as they are stored, and as nodes are matched."""

import pytest
from pydantic import ValidationError

from cluster.resources import Bundle, Kind, Shape, format_amount, format_gang, matches, parse_gang, parse_label


def of(**resources: float) -> Bundle:
    return Bundle(resources=resources)


@pytest.mark.parametrize(
    ("text", "gang"),
    [
        ("CPU=1", [of(CPU=1)]),
        ("2*CPU=1,GPU=1", [of(CPU=1, GPU=1)] * 2),
        (" CPU=0.5 + 2 * CPU=4", [of(CPU=0.5), of(CPU=4), of(CPU=4)]),
        ("CPU=1,memory=8G", [of(CPU=1, memory=8 * 2**30)]),
        ("TPU-v4:head=.5,memory=1.5M", [Bundle(resources={"TPU-v4:head": 0.5, "memory": 1.5 * 2**20})]),
        (
            "2*GPU=1@ray.io/accelerator-type=in(A100,H100)@zone=!b",
            [Bundle(resources={"GPU": 1}, labels={"ray.io/accelerator-type": "in(A100,H100)", "zone": "!b"})] * 2,
        ),
    ],
)
def test_on_the_command_line(text, gang):
    assert parse_gang(text) == gang


@pytest.mark.parametrize(
    "bad",
    ["", "CPU", "CPU=", "CPU=x", "CPU=1..2", "0*CPU=1", "2*", "CPU=1,,GPU=1", "CPU=-1", "CPU=1e9", "CPU=1+",
     "1*1*CPU=1", "CPU=1@", "CPU=1@x", "CPU=1@x=in()", "CPU=1@x=\x1b", "CPU=inf", "CPU=999999999999999"],
)  # fmt: skip
def test_malformed(bad):
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says what is allowed
        parse_gang(bad)


def test_labels():
    assert parse_label("zone = in(a,b)") == ("zone", "in(a,b)")
    for bad in ("zone", "=a", "zone=", "a b=c", "zone=a b"):
        with pytest.raises(ValueError):  # noqa: PT011 - the caller says what is allowed
            parse_label(bad)


@pytest.mark.parametrize(
    ("selector", "value", "expected"),
    [
        ("a", "a", True), ("a", "b", False), ("a", None, False),
        ("!a", "b", True), ("!a", "a", False), ("!a", None, True),
        ("in(a,b)", "b", True), ("in(a,b)", "c", False), ("in(a,b)", None, False),
        ("!in(a,b)", "b", False), ("!in(a,b)", "c", True), ("!in(a,b)", None, True), ("inside", "inside", True),
    ],
)  # fmt: skip
def test_which_labels_a_selector_takes(selector, value, expected):
    """As Ray's own selectors do, in `ray._private.label_utils` and its scheduler."""
    assert matches(selector, value) is expected


def test_how_jobs_were_stored_before_there_were_labels():
    assert Bundle.model_validate({"CPU": 2.0, "resources": 1.0}) == of(CPU=2, resources=1)
    assert Bundle.model_validate({"resources": {"CPU": 2.0}}) == of(CPU=2)
    assert Bundle.model_validate(of(CPU=2).model_dump()) == of(CPU=2)
    for bad in ({"CPU": -1.0}, {"CPU": float("nan")}, {"resources": {"CPU": "x"}}, "CPU", {"CPU": 1e15}):
        with pytest.raises(ValidationError):
            Bundle.model_validate(bad)


def test_shapes_are_equal_whatever_the_order_of_names_and_zeroes():
    one = Shape.of([[Bundle(resources={"CPU": 1, "GPU": 2, "x": 0})]], of())
    other = Shape.of([[Bundle(resources={"GPU": 2, "CPU": 1})]], of(y=0))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Shape.of([[Bundle(resources={"GPU": 2, "CPU": 1.5})]], of())


def test_in_words():
    kinds = [Kind.of(each) for each in (of(CPU=1, GPU=1), of(CPU=0.5), of(CPU=1, GPU=1), of())]
    assert format_gang(kinds) == "2 x (1 CPU, 1 GPU) + 1 x (0.5 CPU) + 1 x (nothing)"
    assert str(Kind.of(Bundle(resources={"GPU": 1}, labels={"zone": "!a"}))) == "1 GPU where zone is !a"
    assert [format_amount("memory", amount) for amount in (2**29, 1.5 * 2**30, 3 * 2**40, 5)] == [
        "512 MiB memory", "1.5 GiB memory", "3 TiB memory", "5 memory",
    ]  # fmt: skip
