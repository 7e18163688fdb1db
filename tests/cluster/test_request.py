"""From a command line to a name, resources and variables."""

from pathlib import Path

import pytest

from cluster import request
from cluster.errors import InputError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "gang"),
    [
        ("CPU=1", [{"CPU": 1.0}]),
        ("2*CPU=1,GPU=1", [{"CPU": 1.0, "GPU": 1.0}] * 2),
        (" CPU=0.5 + 2 * CPU=4", [{"CPU": 0.5}, {"CPU": 4.0}, {"CPU": 4.0}]),
    ],
)
def test_resources(text, gang):
    assert request.parse_resources(text) == gang


@pytest.mark.parametrize("bad", ["", "CPU", "CPU=", "CPU=x", "CPU=1..2", "0*CPU=1", "2*", "CPU=1,,GPU=1", "CPU=-1"])
def test_malformed_resources(bad):
    with pytest.raises(InputError, match=r"--resources .*allowed: CPU=1"):
        request.parse_resources(bad)


def test_the_trainer_reports_its_name_and_bundles(tmp_path: Path):
    command = ["python", "-m", "trainer", "--config", "configs/digits.yaml", "--set", "run.name=mine"]
    description = request.describe(command, ROOT, {"DUALVIEW_STORAGE": str(tmp_path)})
    assert description is not None
    assert request.job_name(description, command) == "mine"
    assert request.gang_alternatives(description) == [[{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 1.0}] * 2]
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
