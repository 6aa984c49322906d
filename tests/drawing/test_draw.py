"""`draw` writes complete files in four forms, and says what is wrong where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawing.samples import chain, plan_for, revnet, three_streams

from revgraph.drawing import draw
from revgraph.drawing.rendering import find_graphviz
from revgraph.errors import GraphError, PlanError

rendered = pytest.mark.skipif(find_graphviz() is None, reason="neither dot nor graphviz-pure is installed")


def test_dot_needs_no_graphviz_and_makes_missing_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revgraph.drawing.rendering.find_graphviz", lambda: None)
    path = draw(revnet(), tmp_path / "deep" / "down" / "net.dot")
    assert path == tmp_path / "deep" / "down" / "net.dot"
    assert path.read_text().splitlines()[1] == "digraph revgraph {"


@rendered
@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".svg", b"<svg "), (".png", b"\x89PNG\r\n"), (".html", b"<!doctype html>"), (".SVG", b"<svg ")],
)
def test_each_form_of_a_plan(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = draw(plan_for(revnet()), str(tmp_path / f"plan{suffix}"))
    assert path.read_bytes().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_unknown_suffix_names_the_forms(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"cannot draw into '.*net\.pdf': .* "
        r"Use one of \.dot, \.svg, \.png, \.html, \.trace\.json, \.pickle\.$",
    ):
        draw(revnet(), tmp_path / "net.pdf")
    with pytest.raises(ValueError, match="its suffix says no form"):
        draw(revnet(), tmp_path / "net")


def test_wrong_type_says_what_to_give(tmp_path: Path) -> None:
    for wrong, named in (
        (object(), "a object"),
        ([], "an empty list"),
        ([revnet()], "a list"),
        ("", "a str"),
    ):
        with pytest.raises(GraphError, match=f"cannot draw {named}: give a Graph, a Plan or a list of plans"):
            draw(wrong, tmp_path / "net.svg")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["plan.svg", "plan.dot"])
def test_a_frontier_beside_a_plan_needs_a_report(tmp_path: Path, name: str) -> None:
    plan = plan_for(revnet())
    with pytest.raises(ValueError, match=r"shown in its report: draw the plan into an \.html"):
        draw(plan, tmp_path / name, frontier=[plan])
    with pytest.raises(ValueError, match=r"shown in its report"):
        draw(plan.graph, tmp_path / "graph.html", frontier=[plan])
    with pytest.raises(PlanError, match="is no budget"):
        draw(plan, tmp_path / name, budget="much")
    assert not list(tmp_path.iterdir())


def test_a_question_is_asked_in_the_report_of_a_plan(tmp_path: Path) -> None:
    plan = plan_for(revnet())
    for drawn, name in ((plan, "plan.svg"), (plan, "plan.pickle"), (plan.graph, "graph.html")):
        with pytest.raises(ValueError, match=r"a question is asked in the report of a plan: .* \.html file"):
            draw(drawn, tmp_path / name, question=True)


def test_a_failed_drawing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.svg"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(revnet(), tmp_path / "net.dot")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"net.svg": "old"}


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    assert draw(revnet(), tmp_path / "net.dot").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_same_input_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    graphs = [revnet(), three_streams(), chain(60)]
    for graph in graphs:
        plan = plan_for(graph)
        first, again = draw(plan, tmp_path / "1.dot"), draw(plan, tmp_path / "2.dot")
        assert first.read_bytes() == again.read_bytes()
        (tmp_path / f"{graph.name}.json").write_text(graph.to_json())
        draw(graph, tmp_path / f"{graph.name}.here.dot")
    program = (
        "import sys; from pathlib import Path; from revgraph.drawing import draw; "
        "from revgraph.graph import Graph\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    draw(Graph.from_json(path.read_text()), path.with_suffix('.there.dot'))"
    )
    paths = [str(tmp_path / f"{graph.name}.json") for graph in graphs]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program, *paths], check=True, env=environment)
    for graph in graphs:
        here, there = (tmp_path / f"{graph.name}.{where}.dot" for where in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()


@rendered
def test_a_thousand_nodes_draw_in_seconds(tmp_path: Path) -> None:
    plan = plan_for(chain(500))
    start = time.perf_counter()
    draw(plan, tmp_path / "folded.svg")
    folded = time.perf_counter() - start
    draw(plan, tmp_path / "unfolded.svg", fold=False)
    draw(plan, tmp_path / "unfolded.png", fold=False)
    assert folded < 5
    assert time.perf_counter() - start < 60
