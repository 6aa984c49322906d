"""Every tutorial runs, and has what a reader is promised. Runs are shared with the documentation's build."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from cells import cells
from execution import ROOT, run
from tutorial_pages import scripts

SCRIPTS = pytest.mark.parametrize("script", scripts(), ids=lambda script: script.stem)


@SCRIPTS
def test_tutorial_runs_and_draws(script: Path) -> None:
    outputs = run(script)
    assert any(output.printed for output in outputs)
    pictures = [svg for output in outputs for _, svg in output.pictures]
    assert pictures
    for svg in pictures:
        assert "<title" in svg
        assert not re.search(r'(?:href|src)="https?:', svg)


def test_reports_ask_their_reader_first() -> None:
    (script,) = (each for each in scripts() if each.stem == "06_planning")
    reports = [text for output in run(script) for name, text in output.pictures if name.endswith(".html")]
    assert len(reports) == 1
    assert all("Which step is the peak?" in each for each in reports)
    for other in scripts():
        drawn = re.findall(r"rg\.draw\([^#]*?\.html\"[^#]*?\n(?=\n|#)", other.read_text(encoding="utf-8"))
        assert all("question=True" in each for each in drawn), other


@SCRIPTS
def test_tutorial_opens_with_what_the_reader_will_be_able_to_do(script: Path) -> None:
    opening = cells(script.read_text(encoding="utf-8"))[0]
    assert opening.markdown
    title, _, text = opening.text.partition("\n\n")
    assert title.startswith(f"# {int(script.stem[:2])}. ")
    assert re.match(r"(After this page|In this page) you can ", text)


@SCRIPTS
def test_tutorial_has_five_exercises_with_answers_one_of_them_to_predict(script: Path) -> None:
    content = cells(script.read_text(encoding="utf-8"))
    questions = [
        text for cell in content for text in re.findall(r"^\*\*\d\.\*\* .*", cell.text, re.MULTILINE)
    ]
    assert [text[2] for text in questions] == list("12345")
    assert any("*Predict, then run.*" in text for text in questions)
    answers = sum(cell.answer and not before.answer for before, cell in itertools.pairwise(content))
    assert answers == 5


@SCRIPTS
def test_bars_are_total_derivatives(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    # The first tutorial has the partial derivative of the cost once, beside the total one.
    assert len(re.findall(r"\\partial *\{?C\b", text)) == (script.stem == "01_backprop_on_a_graph")


@SCRIPTS
def test_tutorial_names_the_librarys_own_code(script: Path) -> None:
    named = re.findall(r"`(revgraph/[\w/.]+)`", script.read_text(encoding="utf-8"))
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_tutorial_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [f"tutorials/{script.stem}.md" for script in scripts()] == re.findall(
        r"tutorials/\d\d_\w+\.md", navigation
    )
