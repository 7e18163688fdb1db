"""`python -m diffusion.verify`: every statement holds, and every deliberate fault is caught."""

import json

import pytest

from diffusion.faults import FAULTS
from diffusion.statements import STATEMENTS, Check, Statement
from diffusion.verify import main


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: f"statement{statement.number}")
def test_statement(statement: Statement):
    checks = list(statement.checks(False))
    assert checks
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_caught_and_leaves_nothing_behind(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--fault", name]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["--quick"]) == 0


def test_the_table_and_its_json(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fault"] is None
    assert {row["statement"] for row in report["checks"]} == {statement.number for statement in STATEMENTS}
    printed = capsys.readouterr().out
    assert all(row["what"] in printed for row in report["checks"])


def test_bad_input(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main(["--fault", "none"]) == 2
    assert "error: --fault none: allowed: beta-for-beta-tilde" in capsys.readouterr().err
    assert main(["--quick", "--json", str(tmp_path / "missing" / "report.json")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["--list-faults"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(FAULTS)


@pytest.mark.parametrize("measured", [float("nan"), float("inf"), 1.2])
def test_a_number_that_is_none_is_not_as_expected(measured: float):
    assert not Check("x", measured, 1.0, 0.1).passed
