"""What the documents name exists, and the theory's tables are those of the code."""

import ast
import re
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest

from diffusion.config import ProcessConfig, ScheduleConfig, SolverConfig, TimeSamplingConfig, WeightingConfig
from diffusion.config.objective import ObjectiveConfig
from diffusion.verify.claims import CLAIMS
from docs import plots

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
THEORY = (ROOT / "docs/theory.md").read_text()
CODE_LINK = re.compile(r"\[`([\w.]+)`\]\(([^)]+\.py)\)")


@cache
def defined(path: Path) -> frozenset[str]:
    """What a module defines: its stem, its functions and constants, its classes and `Class.method`."""
    names = {path.stem}
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                names |= {name, *(f"{name}.{part.name}" for part in body if isinstance(part, ast.FunctionDef))}
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.add(name)
            case _:
                pass
    return frozenset(names)


def kinds(union: Any) -> set[str]:
    """The values of `kind` of an annotated union of configurations."""
    members = get_args(get_args(union)[0])
    return {member.model_fields["kind"].default for member in members}


def table(header: str) -> list[list[str]]:
    """The rows of the theory's table whose first line begins so, a list of cells each."""
    _, _, after = THEORY.partition(f"\n{header}")
    rows = after.split("\n\n")[0].splitlines()[2:]
    assert rows, f"no table {header}"
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def first_names(header: str) -> set[str]:
    return {name for row in table(header) for name in re.findall(r"`(\w+)`", row[0])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if ":" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_every_linked_name_is_in_its_file():
    links = CODE_LINK.findall(THEORY)
    assert len(links) > 50
    missing = [(name, file) for name, file in links if name not in defined((ROOT / "docs" / file).resolve())]
    assert missing == []


def test_the_equations_are_all_there():
    assert sorted(map(int, re.findall(r"\\tag\{(\d+)\}", THEORY))) == list(range(1, 13))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("| `process.kind` |", kinds(ProcessConfig)),
        ("| `process.schedule.kind` |", kinds(ScheduleConfig)),
        ("| `objective.weighting.kind` |", kinds(WeightingConfig)),
        ("| `objective.prediction` |", set(get_args(ObjectiveConfig.model_fields["prediction"].annotation))),
    ],
)
def test_tables_hold_every_kind(header: str, expected: set[str]):
    assert {name for name in first_names(header) if name not in ("Chain", "Vp", "SubVp", "Ve")} == expected


@pytest.mark.parametrize(("section", "union"), [("Solvers", SolverConfig), ("Drawing t", TimeSamplingConfig)])
def test_sections_name_every_kind(section: str, union: UnionType):
    text = THEORY.split(f"\n## {section}\n")[1].split("\n## ")[0]
    assert kinds(union) <= set(re.findall(r"`(\w+)`", text))


def test_claims_are_numbered():
    assert [int(row[0]) for row in table("| | claim |")] == list(range(1, 18))


def test_what_is_said_to_be_measured_is():
    said = {int(row[0]) for row in table("| | claim |") if row[2] != "not measured"}
    assert said == {claim.number for claim in CLAIMS}


def test_pictures_are_drawn_by_the_command(tmp_path: Path):
    assert plots.main(["--out", str(tmp_path), "--quick"]) == 0
    named = set(re.findall(r"\]\(images/([\w.-]+)\)", THEORY))
    assert named == {path.name for path in tmp_path.iterdir()}
    assert all(5_000 < (ROOT / "docs/images" / name).stat().st_size < 150_000 for name in named)


def test_the_queues_page_names_every_reason_and_every_command():
    from cluster.arguments import parser
    from cluster.reasons import EXPLANATIONS

    page = (ROOT / "docs/queue.md").read_text()
    rows = dict(re.findall(r"^\| (`[a-z_`, ]+`) \| (.*) \|$", page, re.MULTILINE))
    codes = [code for names in rows for code in re.findall(r"`(\w+)`", names)]
    assert [code for code in codes if code in set(EXPLANATIONS)] == [str(code) for code in EXPLANATIONS]
    for names, text in rows.items():
        if len(re.findall(r"`(\w+)`", names)) == 1 and names.strip("`") in set(EXPLANATIONS):
            assert text.startswith(EXPLANATIONS[names.strip("`")]), names
    commands = re.findall(r"^    (\w+) ", parser().format_help(), re.MULTILINE)
    assert len(commands) > 10
    assert [name for name in commands if not re.search(rf"`{name}\b", page)] == []
