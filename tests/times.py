"""`python -m tests.times JUNIT.xml [PAGE.md]`: where the suite's time goes, as a table; written into the page."""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

SLOWEST = 30
PLACE = re.compile(r"(?<=<!-- test times -->\n).*?(?=<!-- /test times -->)", re.DOTALL)


def cases(report: Path) -> list[tuple[float, str, str]]:
    """Seconds, folder and name of each test, the slowest first."""
    tree = ET.parse(report)
    found = [
        (float(case.get("time", 0)), _folder(case.get("classname", "")), str(case.get("name")))
        for case in tree.iter("testcase")
    ]
    return sorted(found, reverse=True)


def _folder(module: str) -> str:
    parts = [part for part in module.split(".") if not part.startswith("test_") and part.islower()]
    return "/".join(parts[:3]) or "tests"


def table(times: list[tuple[float, str, str]]) -> str:
    """By folder, then the slowest tests, in Markdown."""
    seconds, counts = defaultdict[str, float](float), Counter[str]()
    for time, folder, _ in times:
        seconds[folder] += time
        counts[folder] += 1
    total = sum(seconds.values())
    lines = ["| folder | tests | seconds |", "|---|---:|---:|"]
    lines += [
        f"| {folder} | {counts[folder]:,} | {time:,.0f} |"
        for folder, time in sorted(seconds.items(), key=lambda each: -each[1])
    ]
    lines += [f"| **all** | {sum(counts.values()):,} | {total:,.0f} |", ""]
    lines += ["| the slowest | seconds |", "|---|---:|"]
    lines += [f"| `{folder}`: {_plain(name)} | {time:.0f} |" for time, folder, name in times[:SLOWEST]]
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ").replace("|", "\\|")


def main() -> None:
    """Print the table, or put it between its marks in a page."""
    text = table(cases(Path(sys.argv[1])))
    if len(sys.argv) < 3:
        print(text, end="")
        return
    page = Path(sys.argv[2])
    before = page.read_text()
    after = PLACE.sub(lambda _: text, before)
    if PLACE.search(before) is None:
        sys.exit(f"{page}: no marks <!-- test times --> and <!-- /test times -->")
    page.write_text(after)


if __name__ == "__main__":
    main()
