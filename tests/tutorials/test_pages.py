"""How tutorials become pages: cells, their order, their output, failures by name, equations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tutorial_pages
from cells import cells
from equations import on_page_content
from execution import Output, TutorialError, run
from mkdocs.exceptions import PluginError
from tutorial_pages import fenced, page, write

SCRIPT = """\
# %% [markdown]
# # A title
#
# Text with $x$.

# %%
import os
from pathlib import Path

print("first")

# %% tags=["drawing"]
picture = Path(os.environ["REVGRAPH_PICTURES"], "line.svg")
picture.write_text("<svg><title>A line</title></svg>")
print("second")

# %% [markdown]
# **1.** A question?

# %% tags=["answer"]
print("third")
"""


def written(folder: Path, text: str) -> Path:
    script = folder / "01_sample.py"
    script.write_text(text)
    return script


def test_cells_know_their_kind_and_line() -> None:
    found = cells(SCRIPT)
    assert [cell.line for cell in found] == [2, 7, 13, 18, 21]
    assert [cell.markdown for cell in found] == [True, False, False, True, False]
    assert [cell.answer for cell in found] == [False, False, False, False, True]
    assert found[0].text == "# A title\n\nText with $x$."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\n# %%\n", "line 1: begin the script with a cell"),
        ("# %%\nx = 1\n# %% [raw]\n", "line 3: .* is no marker"),
        ("# %% [markdown]\n# Text\nx = 1\n", "line 3: a markdown cell is written in comments"),
    ],
)
def test_scripts_that_are_no_cells_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        cells(text)


def test_page_has_cells_outputs_and_pictures_in_order_and_answers_hidden(tmp_path: Path) -> None:
    script = written(tmp_path, SCRIPT)
    text = page("01_sample", cells(SCRIPT), run(script, tmp_path / "cache"))
    order = [
        "# A title",
        "Text with $x$.",
        'print("first")',
        "```{ .text .printed }\nfirst\n```",
        "```{ .text .printed }\nsecond\n```",
        "![A line](01_sample/line.svg)",
        '??? quote "How this is drawn"',
        "**1.** A question?",
        '??? note "Answer"',
        "    ```{ .text .printed }\n    third\n    ```",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_report_stands_in_the_page_and_has_a_link_to_it(tmp_path: Path) -> None:
    code = (
        "import os\nopen(os.environ['REVGRAPH_PICTURES'] + '/plan.html', 'w').write('<title>A plan</title>')"
    )
    text = f"# %% [markdown]\n# # Title\n\n# %%\n{code}\n"
    (output,) = run(written(tmp_path, text), tmp_path / "cache")
    assert output.pictures == (("plan.html", "<title>A plan</title>"),)
    shown = page("01_sample", cells(text), [output])
    frame = '<iframe class="stepper plan" src="01_sample/plan.html" loading="lazy" title="A plan"></iframe>'
    assert frame in shown
    assert shown.rstrip().endswith("[Open it as a page of its own](01_sample/plan.html)")


def test_page_offers_its_notebook() -> None:
    assert '[Download as notebook](01_sample.ipynb){ download="01_sample.ipynb" }' in page(
        "01_sample", cells(SCRIPT), []
    )


def test_a_wide_picture_is_marked_to_be_scrolled_on_a_phone(tmp_path: Path) -> None:
    for points, mark in ((432, ""), (605, "{ .large }")):
        output = Output(
            2, "", (("line.svg", f'<svg xmlns="x" width="{points}pt"><title>A line</title></svg>'),)
        )
        assert f"![A line](01_sample/line.svg){mark}\n" in page("01_sample", cells(SCRIPT), [output])


def test_pages_are_files_that_change_when_they_have_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, pages = written(tmp_path, SCRIPT), tmp_path / "pages"
    found = run(script, tmp_path / "cache")
    monkeypatch.setattr(tutorial_pages, "scripts", lambda: [script])
    monkeypatch.setattr(tutorial_pages, "run_all", lambda _: [found])
    others = [pages / "00_old.md", pages / "01_sample" / "old.svg", pages / "index.md"]
    (pages / "01_sample").mkdir(parents=True)
    for other in others:
        other.write_text("before")
    write(pages)
    names = {path.relative_to(pages).as_posix() for path in pages.rglob("*") if path.is_file()}
    assert names == {"01_sample.md", "01_sample.ipynb", "01_sample/line.svg", "index.md"}
    assert (pages / "01_sample.md").read_text() == page("01_sample", cells(SCRIPT), found)
    times = {path: path.stat().st_mtime_ns for path in pages.rglob("*")}
    write(pages)
    assert {path: path.stat().st_mtime_ns for path in pages.rglob("*")} == times


def test_one_content_runs_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    text = f"# %%\nopen({str(counter)!r}, 'a').write('x')\n"
    script = written(tmp_path, text)
    for _ in range(2):
        run(script, tmp_path / "cache")
    assert counter.read_text() == "x"
    written(tmp_path, text + "print('changed')\n")
    assert run(script, tmp_path / "cache")[0].printed == "changed\n"
    assert counter.read_text() == "xx"
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("assert 1 == 2, 'not so'", "AssertionError: not so"),
        ("1 +", "SyntaxError"),
        ("import warnings; warnings.warn('careful')", "UserWarning: careful"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_failing_cell_is_named_with_its_line_and_cause(tmp_path: Path, code: str, error: str) -> None:
    script = written(tmp_path, f"# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\n{code}\n")
    with pytest.raises(TutorialError, match=r"01_sample\.py: cell 3, from line 8, fails: " + error):
        run(script, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))


def test_process_that_dies_is_an_error(tmp_path: Path) -> None:
    script = written(tmp_path, "# %%\nimport os\n\nos._exit(3)\n")
    with pytest.raises(TutorialError, match="did not run"):
        run(script, tmp_path / "cache")


def test_code_that_holds_fences_stays_one_block() -> None:
    assert fenced("```\nx\n```", "python") == "````python\n```\nx\n```\n````"


def set_(html: str) -> str:
    return on_page_content(html, page=SimpleNamespace(file=SimpleNamespace(src_uri="a.md")))


def test_equations_become_mathml() -> None:
    inline = set_(r'<p><span class="arithmatex">\(\bar{z}_1 &lt; x\)</span></p>')
    assert inline.startswith("<p><math") and 'display="inline"' in inline and "arithmatex" not in inline
    block = set_('<div class="arithmatex">\\[\nx = y\n\\]</div>')
    assert block.startswith("<math") and 'display="block"' in block


def test_equations_beside_each_other_may_stand_below_each_other() -> None:
    block = set_(
        '<div class="arithmatex">\\[\nx = y \\qquad\\qquad z = \\text{if } w \\qquad\\quad v\n\\]</div>'
    )
    assert block.startswith('<div class="equations"><math') and block.count("<math") == 3
    inner = set_('<div class="arithmatex">\\[\n\\frac{x \\qquad y}{z}\n\\]</div>')
    assert inner.count("<math") == 1


def test_a_letter_in_roman_is_upright() -> None:
    assert "<mtext>d</mtext>" in set_(r'<span class="arithmatex">\(\mathrm{d} C\)</span>')


def test_equation_that_cannot_be_set_is_named_with_its_page() -> None:
    with pytest.raises(PluginError, match=r"a\.md: the equation .*nosuchcommand"):
        set_(r'<span class="arithmatex">\(\nosuchcommand{x}\)</span>')
