"""Cells of a percent script: `# %%` begins a cell of code, `# %% [markdown]` one of text in comments."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKER = re.compile(r"# %%(?P<kind> \[markdown\])?(?: tags=\[\"(?P<tag>answer|drawing)\"\])?\s*")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's text, and the line of the script that it starts on, counted from 1.

    Text of a markdown cell has lost its comment signs. An `answer` is hidden until the reader asks for it,
    and so is the code of a `drawing`, but not its picture.
    """

    text: str
    line: int
    markdown: bool = False
    answer: bool = False
    drawing: bool = False


def cells(script: str) -> list[Cell]:
    """The cells of a script, in order.

    Raises:
        ValueError: there is something before the first cell, a marker is not understood, or a markdown cell
            has lines that are no comments.
    """
    found: list[Cell] = []
    head: re.Match[str] | None = None
    start, lines = 1, []
    for number, line in enumerate([*script.splitlines(), "# %%"], start=1):
        if not line.startswith("# %%"):
            lines.append(line)
            continue
        if head is not None:
            found.append(_cell(head, start, lines))
        elif any(lines):
            raise ValueError(f"line {start}: begin the script with a cell, # %% or # %% [markdown]")
        head, start, lines = MARKER.fullmatch(line), number + 1, []
        if head is None:
            raise ValueError(f"line {number}: {line!r} is no marker of a cell")
    return found


def _cell(head: re.Match[str], start: int, lines: list[str]) -> Cell:
    while lines and not lines[-1]:
        lines.pop()
    if not head["kind"]:
        return Cell("\n".join(lines), start, answer=head["tag"] == "answer", drawing=head["tag"] == "drawing")
    for number, line in enumerate(lines, start=start):
        if line and not line.startswith("#"):
            raise ValueError(f"line {number}: a markdown cell is written in comments")
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
    return Cell(text, start, markdown=True, answer=head["tag"] == "answer")
