"""Runs the tests behind the promises and writes docs/trust.md: `make trust`."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from trust.promises import FAULTS, PROMISES, names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trust.md"
PROCESSES = "2"
INTRODUCTION = """\
# What you can rely on

Each promise below is held up by tests: `make trust` runs them all and writes this page from their results.
A test is given by its file in the folder `tests`, and by its name where it is one of several there. Where a
promise has a limit, [the concepts](concepts.md) say so.
"""
FAULTY = """\
## Faults

What was done wrong on purpose, how many cases of it the tests try, and what happens then. To run one again:

```text
python -m pytest tests/FILE::NAME
```
"""


class Results:
    """A pytest plugin that counts outcomes by test function."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            function = report.nodeid.removeprefix("tests/").partition("[")[0]
            self.outcomes.setdefault(function, Counter())[report.outcome] += 1

    def of(self, tests: Iterable[str]) -> Counter[str]:
        """The outcomes of these tests together."""
        found: Counter[str] = Counter()
        for test in tests:
            for function, outcomes in self.outcomes.items():
                if function == test or function.startswith(f"{test}::"):
                    found += outcomes
        return found


def told(outcomes: Counter[str]) -> str:
    """Outcomes as a cell of a table."""
    if not outcomes["passed"] and not outcomes["failed"]:
        return "not run"
    parts = [f"{outcomes[name]} {name}" for name in ("failed", "passed", "skipped") if outcomes[name]]
    return ", ".join(parts)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def links(tests: Iterable[str]) -> str:
    """Where tests are, as code."""
    return "<br>".join(f"`{test}`" for test in tests)


def text(results: Results) -> str:
    """The page."""
    promises = [(each.text, told(results.of(each.tests)), links(each.tests)) for each in PROMISES]
    faults = [(each.text, each.outcome, told(results.of(each.tests)), links(each.tests)) for each in FAULTS]
    release = torch.__version__.partition("+")[0]
    machine = (
        f"These results are of Python {platform.python_version()}, torch {release}, "
        f"{platform.system()} on {platform.machine()}, "
        f"{'with' if torch.cuda.is_available() else 'without'} a GPU. What is skipped needs one.\n"
    )
    return "\n".join(
        (
            INTRODUCTION,
            machine,
            table(("Promise", "Tests", "Where"), promises),
            FAULTY,
            table(("What was done", "What happens", "Cases", "Where"), faults),
        )
    )


def main() -> int:
    """Run the tests, write the page, and give pytest's exit status."""
    os.chdir(ROOT)
    results = Results()
    status = pytest.main(
        ["-q", "-n", PROCESSES, "--dist", "loadfile", *(f"tests/{name}" for name in names())],
        plugins=[results],
    )
    PAGE.write_text(text(results), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
