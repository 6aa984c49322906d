"""Rendering takes the graphviz that is there, and names both ways to get one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drawing.samples import plan_for, revnet, three_streams

from revgraph.drawing import draw
from revgraph.drawing.dot import to_drawing
from revgraph.drawing.rendering import LARGEST, find_graphviz, render
from revgraph.errors import GraphError

PURE = find_graphviz()
PYTHON = sys.executable


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{PYTHON}\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one folder, and no graphviz among this environment's scripts."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "nothing"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing" / "python"))
    return tmp_path / "bin"


def test_a_system_dot_comes_first(alone: Path) -> None:
    program(alone, "graphviz-pure", "")
    dot = program(alone, "dot", "")
    assert find_graphviz() == dot


def test_graphviz_pure_on_the_path_will_do(alone: Path) -> None:
    pure = program(alone, "graphviz-pure", "")
    assert find_graphviz() == pure


def test_graphviz_is_asked_to_keep_our_places(alone: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program(
        alone,
        "dot",
        f"import sys\nopen({str(log)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "assert sys.stdin.read().count('digraph') == 1\nprint('picture')\n",
    )
    assert render(to_drawing(revnet()).source, "png", (300, 1400)) == b"picture\n"
    assert log.read_text() == "-Kneato -n2 -Tpng -Gdpi=144"
    render(to_drawing(revnet()).source, "png", (300, 72.0 * LARGEST / 36))
    assert log.read_text().endswith("-Gdpi=36")


def test_without_graphviz_the_error_names_both_ways_and_dot(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        draw(revnet(), tmp_path / "net.svg")
    assert str(caught.value) == (
        "drawing a .svg needs graphviz, and neither `dot` nor `graphviz-pure` is here. Install one: "
        'pip install "revgraph[draw]", or your system\'s graphviz package. '
        "A .dot file can be drawn without either."
    )
    assert not (tmp_path / "net.svg").exists()
    draw(revnet(), tmp_path / "net.dot")


def test_a_failing_graphviz_is_quoted(alone: Path, tmp_path: Path) -> None:
    dot = program(alone, "dot", "import sys\nsys.exit('first\\nthe plugin is missing')")
    with pytest.raises(GraphError) as caught:
        draw(revnet(), tmp_path / "net.png")
    assert str(caught.value) == (
        f"graphviz at {dot} could not draw the .png (exit status 1): the plugin is missing. "
        "A .dot file can be drawn without it."
    )


def test_a_silent_or_broken_graphviz_is_an_error_too(alone: Path, tmp_path: Path) -> None:
    program(alone, "dot", "")
    with pytest.raises(GraphError, match=r"exit status 0\): it says nothing"):
        draw(revnet(), tmp_path / "net.svg")
    (alone / "dot").write_text("neither a script nor a program")
    with pytest.raises(GraphError, match="does not start"):
        draw(revnet(), tmp_path / "net.svg")


@pytest.mark.skipif(PURE is None, reason="neither dot nor graphviz-pure is installed")
@pytest.mark.parametrize("make", [revnet, three_streams])
def test_the_dot_text_is_valid_and_other_layouts_draw_it_too(tmp_path: Path, make: object) -> None:
    path = draw(plan_for(make()), tmp_path / "plan.dot")  # pyright: ignore[reportCallIssue]
    done = subprocess.run(
        [str(PURE), "-Kdot", "-Tplain", str(path)], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith("graph ")
    assert "Error" not in done.stderr
    assert os.linesep + "edge " in done.stdout
