"""Tutorials as notebooks. That each runs alone, in an empty folder, is tested where its output is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from cells import cells
from execution import ROOT, TutorialError, run
from notebooks import notebook, plain
from tutorial_pages import scripts

SCRIPTS = pytest.mark.parametrize("script", scripts(), ids=lambda script: script.stem)
SAMPLE = """\
# %% [markdown]
# # 1. A title

# %%
import sys

from pictures import BLUE, chart

print(BLUE)

# %% [markdown]
# ## Exercises
#
# **1.** A question?

# %% tags=["answer"]
print("an answer")

# %% [markdown] tags=["answer"]
# So it is.

# %% [markdown]
# **2.** Another?

# %% tags=["answer"]
print("another answer")
"""


def written(folder: Path, text: str = SAMPLE) -> Path:
    (folder / "pictures.py").write_text('BLUE = "blue"\n\n\ndef chart():\n    pass\n')
    script = folder / "01_sample.py"
    script.write_text(text)
    return script


def test_answers_come_last_and_an_empty_cell_follows_each_question(tmp_path: Path) -> None:
    made = notebook(written(tmp_path))
    assert [(cell["cell_type"], "".join(cell["source"]).partition("\n")[0]) for cell in made["cells"]] == [
        ("markdown", "# 1. A title"),
        ("markdown", "This needs revgraph with its extras `draw` and `train`. Answers are at the end."),
        ("code", 'BLUE = "blue"'),
        ("code", "import sys"),
        ("markdown", "## Exercises"),
        ("code", ""),
        ("markdown", "**2.** Another?"),
        ("code", ""),
        ("markdown", "## Answers"),
        ("markdown", "**1.**"),
        ("code", 'print("an answer")'),
        ("markdown", "So it is."),
        ("markdown", "**2.**"),
        ("code", 'print("another answer")'),
    ]


def test_output_is_that_of_the_notebook_by_cell_of_the_script(tmp_path: Path) -> None:
    outputs = run(written(tmp_path), tmp_path / "cache")
    assert [(each.cell, each.printed) for each in outputs] == [
        (1, "blue\n"),
        (3, "an answer\n"),
        (6, "another answer\n"),
    ]


def test_nothing_beside_the_script_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    script = written(tmp_path, SAMPLE.replace("import sys\n", "import beside\n"))
    with pytest.raises(TutorialError, match=r"cell 2, from line 5, fails: ModuleNotFoundError.*beside"):
        run(script, tmp_path / "cache")
    script = written(tmp_path, SAMPLE.replace("import sys\n", "import cells\n"))
    with pytest.raises(TutorialError, match=r"cell 2, from line 5, fails: ModuleNotFoundError.*cells"):
        run(script, tmp_path / "cache")


def test_boxes_and_links_become_plain_text() -> None:
    text = (
        'Before [it](../drift.md#exact).\n\n!!! info "In the library"\n\n    One `a`\n    line.\n\n## After'
    )
    assert plain(text) == "Before it.\n\n> **In the library**\n>\n> One `a`\n> line.\n\n## After", plain(text)


@SCRIPTS
def test_notebook_is_of_the_format_and_stands_alone(script: Path) -> None:
    made = notebook(script)
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in made["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    content = cells(script.read_text(encoding="utf-8"))
    assert {name for name in names if name.startswith("cell-")} == {f"cell-{i}" for i in range(len(content))}
    for cell in made["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert set(cell) == {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}
            assert "from pictures" not in source
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
            assert not re.search(r"^!!!|\]\((?!https?:)", source, re.MULTILINE)


@SCRIPTS
def test_the_script_imports_what_the_notebook_carries(script: Path) -> None:
    helper = ast.parse((ROOT / "tutorials" / "pictures.py").read_text(encoding="utf-8"))
    has = {node.id for node in ast.walk(helper) if isinstance(node, ast.Name)}
    has |= {node.name for node in ast.walk(helper) if isinstance(node, (ast.FunctionDef, ast.alias))}
    asked = [
        alias.name
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "pictures"
        for alias in node.names
    ]
    assert asked and set(asked) <= has
