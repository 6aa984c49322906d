"""Tutorials as Jupyter notebooks, which need nothing beside them.

A notebook has the cells of the script in their order, but the answers, which come after all the others:
below each question is an empty cell instead. The helper that draws is the first cell of code, in place of its
import. What only a page of the documentation can show, a link or a box, becomes plain text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from cells import Cell, cells

HELPER = "pictures"
IMPORT = re.compile(rf"^from {HELPER} import (?:[\w, ]+|\([^)]*\))\n", re.MULTILINE)
QUESTION = re.compile(r"^\*\*\d\.\*\*", re.MULTILINE)
BOX = re.compile(r'^!!! \w+ "(?P<title>.*)"\n(?P<text>(?:\n|    .*(?:\n|\Z))+)', re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)*[\w/]+\.(?:md|html)(?:#[\w-]+)?\)")
NEEDS = "This needs revgraph with its extras `draw` and `train`. Answers are at the end."
# Such a cell's code, or its code and what it prints, is folded away until the reader opens it.
FOLDED = {"jupyter": {"source_hidden": True}}
ANSWER = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": ["answer"]}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(script: Path) -> dict[str, Any]:
    """The script as a notebook of format 4.5, without outputs.

    A cell's id is `cell-` and its index in the script; what the script does not have is named otherwise.

    Raises:
        ValueError: the script is no sequence of cells.
    """
    content = list(enumerate(cells(script.read_text(encoding="utf-8"))))
    shown: list[dict[str, Any]] = []
    for index, cell in content:
        if cell.answer:
            continue
        shown.append(_cell(cell, index))
        if cell.markdown:
            asked = QUESTION.findall(cell.text)
            shown += [_code(f"yours-{index}-{number}", "") for number, _ in enumerate(asked)]
    helped = any(IMPORT.search(cell.text) for _, cell in content if not cell.markdown)
    if helped:
        text = script.with_name(f"{HELPER}.py").read_text(encoding="utf-8")
        shown.insert(1, _code(HELPER, text.rstrip("\n"), FOLDED))
    if any(cell.answer for _, cell in content):
        shown.append(_markdown("answers", "## Answers"))
    number = 0
    for (_, before), (index, cell) in pairwise(content):
        if not cell.answer:
            continue
        if not before.answer:
            number += 1
            shown.append(_markdown(f"answer-{number}", f"**{number}.**"))
        shown.append(_cell(cell, index))
    shown.insert(1, _markdown("needs", NEEDS))
    return {"cells": shown, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _cell(cell: Cell, index: int) -> dict[str, Any]:
    if cell.markdown:
        return _markdown(f"cell-{index}", plain(cell.text))
    text = IMPORT.sub("", cell.text).strip("\n")
    return _code(f"cell-{index}", text, ANSWER if cell.answer else FOLDED if cell.drawing else {})


def plain(text: str) -> str:
    """Markdown without what only the documentation's pages have: boxes are quotations, links their text."""
    boxed = BOX.sub(lambda box: f"> **{box['title']}**\n>\n{_quoted(box['text'])}\n", text)
    return LINK.sub(r"\1", boxed)


def _quoted(text: str) -> str:
    lines = text.strip("\n").splitlines()
    return "".join(f"> {line.removeprefix('    ')}".rstrip() + "\n" for line in lines)


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": _lines(text)}


def _code(name: str, text: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    made = {"cell_type": "code", "id": name, "metadata": metadata or {}, "source": _lines(text)}
    return {**made, "execution_count": None, "outputs": []}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
