"""From a command line to a name, resources and variables."""

from pathlib import Path

import pytest

from cluster import request
from cluster.errors import InputError
from cluster.resources import Bundle
from tests.conftest import ROOT

ONE, HALF = Bundle(resources={"CPU": 1.0}), Bundle(resources={"memory": 2.0**29})


@pytest.mark.parametrize(
    ("resources", "driver", "labels", "gangs", "own"),
    [
        (None, None, [], [[]], ONE),
        ("2*CPU=1", None, [], [[ONE, ONE]], HALF),
        (None, "CPU=1", [], [[]], ONE),
        ("CPU=1", "CPU=1", [], [[ONE]], ONE),
        (None, None, ["zone=a"], [[]], Bundle(resources={"CPU": 1.0}, labels={"zone": "a"})),
        (
            "CPU=1@disk=ssd",
            None,
            ["zone=a"],
            [[Bundle(resources={"CPU": 1.0}, labels={"disk": "ssd", "zone": "a"})]],
            HALF,
        ),
    ],
)
def test_what_a_command_asks_for(resources, driver, labels, gangs, own):
    assert request.gangs_and_driver(None, resources, driver, labels) == (gangs, own)


@pytest.mark.parametrize(
    ("resources", "driver", "labels", "message"),
    [
        ("many", None, [], r"--resources 'many': allowed: CPU=1, or 2\*CPU=1,GPU=1"),
        (None, "2*CPU=1", [], r"--driver '2\*CPU=1': 2 bundles; allowed: one"),
        (None, "CPU", [], r"--driver 'CPU': allowed: CPU=2,memory=4G"),
        (None, None, ["zone"], r"--label 'zone': allowed: NAME=VALUE"),
    ],
)
def test_malformed_resources(resources, driver, labels, message):
    with pytest.raises(InputError, match=message):
        request.gangs_and_driver(None, resources, driver, labels)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("45s", 45), ("1.5m", 90), ("12h", 43200), ("7d", 604800), ("1-12:00:00", 129600), ("0:00:05", 5)],
)
def test_durations(text, seconds):
    assert request.parse_duration(text, "--since") == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "5w", "1:00", "99999d", "1e3", "nan", "٣"])
def test_malformed_durations(text):
    with pytest.raises(InputError, match=r"--since .*allowed: 45s, 30m, 12h, 7d or 1-12:00:00"):
        request.parse_duration(text, "--since")


def test_dependencies():
    assert request.parse_after(["3", "4:any", "5:ok"]) == {3: "ok", 4: "any", 5: "ok"}
    for bad in ("", "x", "3:fail", "-1", "3:"):
        with pytest.raises(InputError, match="--after"):
            request.parse_after([bad])


def test_arrays(tmp_path: Path):
    file = tmp_path / "rows.yaml"
    file.write_text("- {lr: 0.001, seed: 1, fast: true}\n- {lr: 1.0e-4, seed: 2, fast: false}\n")
    rows = request.read_array(file)
    assert rows == [{"lr": "0.001", "seed": "1", "fast": "true"}, {"lr": "0.0001", "seed": "2", "fast": "false"}]
    assert request.fill(["x", "--lr={lr}", "{seed}", "{other}"], rows[1]) == ["x", "--lr=0.0001", "2", "{other}"]
    with pytest.raises(
        InputError, match=r"the command uses none of the array's lr, seed, fast; allowed: a word such as \{lr\}"
    ):
        request.fill(["x"], rows[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its rows: None"),
        ("[]", r"its rows: \[\]"),
        ("seed: 1", "its rows: "),
        ("- 5", "row 1: 5"),
        ("- {seed: 1}\n- {}", r"row 2: \{\}"),
        ("- {seed: 1}\n- {other: 1}", "row 2: other; allowed: the names of row 1, seed"),
        ("- {seed: [1]}", r"row 1: "),
        ("- {'a b': 1}", "row 1: 'a b'"),
        ("- {seed: null}", "row 1: None"),
        ("{", "no YAML"),
    ],
)
def test_malformed_arrays(tmp_path: Path, text: str, message: str):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        request.read_array(tmp_path / "rows.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        request.read_array(tmp_path / "missing.yaml")


def test_the_same_work_has_the_same_key():
    fields = {"user": "me", "name": "x", "command": ["true"], "environment": {}, "snapshot": "0", "gangs": [[ONE]],
              "driver": ONE, "after": {}, "priority": 1}  # fmt: skip
    key = request.job_key(None, fields)
    assert request.job_key(None, {**fields, "priority": 2}) == key
    for name, value in (("command", ["false"]), ("user", "you"), ("gangs", [[]]), ("driver", HALF), ("name", "y")):
        assert request.job_key(None, {**fields, name: value}) != key
    run = {"run": {"name": "a", "directory": "/runs/a"}}
    assert request.job_key(run, fields) == request.job_key(run, {**fields, "command": ["other"]}) != key


def test_the_trainer_reports_its_name_and_bundles(tmp_path: Path):
    command = ["python", "-m", "trainer", "--config", "configs/digits.yaml", "--set", "run.name=mine"]
    description = request.describe(command, ROOT, {"DUALVIEW_STORAGE": str(tmp_path)})
    assert description is not None
    assert request.job_name(description, command) == "mine"
    both = Bundle(resources={"CPU": 1.0, "GPU": 1.0})
    assert request.gangs_and_driver(description, None, None, []) == ([[both] * 2, [ONE] * 2], HALF)
    assert list(tmp_path.iterdir()) == []


def test_what_the_trainer_rejects_the_queue_rejects():
    command = ["python3", "-m", "trainer", "--config", "configs/digits.yaml", "--set", "parallel.zero_stage=4"]
    with pytest.raises(InputError, match=r"the command rejects its input: parallel\.zero_stage = 4"):
        request.describe(command, ROOT, {})


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "train.py", "--fast"], "train.py"),
        (["/usr/bin/python3.11", "-m", "my.module"], "my.module"),
        (["bash", "-c", "echo"], "bash"),
        (["./a b!c"], "a-b-c"),
        (["…"], "job"),
    ],
)
def test_other_commands_are_named_by_an_argument(command, name):
    assert request.describe(command, ROOT, {}) is None
    assert request.job_name(None, command) == name


def test_variables(monkeypatch: pytest.MonkeyPatch):
    for name in request.INHERITED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DUALVIEW_STORAGE", "/data")
    assert request.job_environment(["A=b=c", "B="], "abc") == {
        "DUALVIEW_STORAGE": "/data", "DUALVIEW_GIT_COMMIT": "abc", "A": "b=c", "B": "",
    }  # fmt: skip
    monkeypatch.setenv("DUALVIEW_GIT_COMMIT", "another")
    assert request.job_environment([], None)["DUALVIEW_GIT_COMMIT"] == "another"
    assert request.job_environment([], "abc")["DUALVIEW_GIT_COMMIT"] == "abc"
    for bad in ("A", "=b", "1A=b", "A B=c"):
        with pytest.raises(InputError, match="allowed: NAME=VALUE"):
            request.job_environment([bad], None)
