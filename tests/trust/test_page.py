"""The trust page lists the promises and faults that there are, and all that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trust.page import FAULTY, INTRODUCTION, PAGE, ROOT, links
from trust.promises import FAULTS, PROMISES, names


def rows(heading: str) -> list[list[str]]:
    """The cells of a table of the page, found by its heading row."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines[lines.index(heading) + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def test_the_page_lists_exactly_the_promises() -> None:
    found = rows("| Promise | Tests | Where |")
    assert [(row[0], row[2]) for row in found] == [(each.text, links(each.tests)) for each in PROMISES]


def test_the_page_lists_exactly_the_faults() -> None:
    found = rows("| What was done | What happens | Cases | Where |")
    expected = [(each.text, each.outcome, links(each.tests)) for each in FAULTS]
    assert [(row[0], row[1], row[3]) for row in found] == expected


def test_the_page_shows_no_failure_and_nothing_untried() -> None:
    results = [row[1] for row in rows("| Promise | Tests | Where |")]
    results += [row[2] for row in rows("| What was done | What happens | Cases | Where |")]
    for result in results:
        assert re.fullmatch(r"[1-9]\d* passed(, \d+ skipped)?", result)


@pytest.mark.parametrize("name", names())
def test_every_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {function or 'test_'}", source, re.MULTILINE)


def test_the_page_says_what_the_generator_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(INTRODUCTION) and FAULTY in page


def test_every_file_of_this_folder_is_named() -> None:
    own = {f"trust/{path.name}" for path in Path(__file__).parent.glob("test_*.py")} - {"trust/test_page.py"}
    assert own <= {name.partition("::")[0] for name in names()}
