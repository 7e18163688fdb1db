"""`python -m diffusion.verify`: every claim holds, and every deliberate fault is caught by its own claim."""

import json
import math
import runpy
import sys

import pytest

from diffusion.verify import claims
from diffusion.verify.__main__ import main
from diffusion.verify.claims import CLAIMS, Check, Claim
from diffusion.verify.mutants import MUTANTS

BY_NUMBER = {claim.number: claim for claim in CLAIMS}


def test_the_seventeen_claims_are_there_and_each_has_a_fault():
    assert [claim.number for claim in CLAIMS] == list(range(1, 18))
    assert {mutation.claim for mutation in MUTANTS.values()} == set(BY_NUMBER)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"claim{claim.number}")
def test_claim(claim: Claim):
    checks = list(claim.checks(False))
    assert checks
    assert [check for check in checks if not check.passed] == []
    assert len({check.what for check in checks}) == len(checks)


def caught(claim: Claim) -> bool:
    """Whether a check fails, or cannot be made at all."""
    try:
        return not all(check.passed for check in claim.checks(True))
    except (ValueError, ArithmeticError):
        return True


@pytest.mark.parametrize("name", MUTANTS)
def test_each_fault_is_caught_by_its_own_claim_and_leaves_nothing_behind(name: str):
    mutation = MUTANTS[name]
    original, before = getattr(mutation.targets[0], mutation.name), [dict(vars(target)) for target in mutation.targets]
    assert all(getattr(target, mutation.name) is original for target in mutation.targets)
    with mutation.applied():
        assert all(getattr(target, mutation.name) is not original for target in mutation.targets)
        assert caught(BY_NUMBER[mutation.claim])
    assert [dict(vars(target)) for target in mutation.targets] == before


def test_a_fault_is_taken_back_when_its_checks_raise():
    mutation = MUTANTS["nats-for-bits"]
    original = getattr(mutation.targets[0], mutation.name)
    with pytest.raises(KeyboardInterrupt), mutation.applied():
        raise KeyboardInterrupt
    assert getattr(mutation.targets[0], mutation.name) is original


def only(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Leave these claims alone in the command."""
    monkeypatch.setattr(claims, "CLAIMS", tuple(BY_NUMBER[number] for number in numbers))


def test_the_command_prints_every_claim_and_writes_its_json(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fault"] is None
    assert {row["statement"] for row in report["checks"]} == set(BY_NUMBER)
    assert all(row["passed"] and abs(row["measured"] - row["expected"]) <= row["tolerance"] for row in report["checks"])
    printed = capsys.readouterr().out
    assert all(row["what"] in printed for row in report["checks"])
    assert all(claim.text in printed for claim in CLAIMS)
    assert f"{len(report['checks'])} of {len(report['checks'])} checks passed" in printed


def test_the_command_with_a_fault_fails_and_without_it_passes_again(tmp_path, monkeypatch, capsys):
    only(monkeypatch, 3, 12)
    assert main(["--quick", "--fault", "nats-for-bits", "--json", str(tmp_path / "report.json")]) == 1
    assert "FAIL linear-1000: L_T" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fault"] == "nats-for-bits"
    assert {row["statement"] for row in report["checks"] if not row["passed"]} == {3}
    assert main(["--quick"]) == 0


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, RuntimeError])
def test_a_check_that_cannot_be_made_has_failed_and_the_others_go_on(tmp_path, monkeypatch, capsys, error):
    def raises(quick):
        yield Check("one", math.nan, 1.0, 0.0)
        raise error("no such thing")

    monkeypatch.setattr(claims, "CLAIMS", (Claim(1, "raises", raises), BY_NUMBER[12]))
    assert main(["--quick", "--json", str(tmp_path / "report.json")]) == 1
    printed = capsys.readouterr().out
    assert "FAIL no such thing" in printed
    assert "12 of 14 checks passed" in printed
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    rows = json.loads(text)["checks"]
    assert [row["measured"] for row in rows[:2]] == [None, None]
    assert {tuple(row) for row in rows} == {("statement", "what", "measured", "expected", "tolerance", "passed")}


def test_bad_input(tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    only(monkeypatch, 12)
    assert main(["--fault", "none"]) == 2
    assert "error: --fault none: allowed: beta-for-beta-tilde" in capsys.readouterr().err
    assert main(["--quick", "--json", str(tmp_path / "missing" / "report.json")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_it_runs_as_a_module(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["verify", "--list-faults"])
    monkeypatch.delitem(sys.modules, "diffusion.verify.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("diffusion.verify", run_name="__main__")
    assert "beta-for-beta-tilde" in capsys.readouterr().out


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["--list-faults"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(MUTANTS)
    assert all(name in line and MUTANTS[name].text in line for name, line in zip(MUTANTS, printed, strict=True))


@pytest.mark.parametrize("measured", [float("nan"), float("inf"), 1.2])
def test_a_number_that_is_none_is_not_as_expected(measured: float):
    assert not Check("x", measured, 1.0, 0.1).passed
